// Web search in the chat: results as text and links. The question leaves this machine, and the page says so.
//
//   const { hits, backend } = await search("moons of Mars");  // hits: [{n, title, url, snippet}]; throws LabError
//   renderSources(hits, element);                             // or the `sources` of a message
//   const word = await reasonToSearch(text);                  // a word that refers to the present, or null
//   element.append(searchSettings());                         // backend, address, automatic search, the notice
//   notice.textContent = await privacyNotice();               // "Your question leaves this machine: ..."

import { api, el, stored, toast } from "./lab.js";

const BACKEND = "search.backend"; // "ddgs", the address of a SearXNG, or "" for the server's default
const AUTOMATIC = "search.automatic";
const announced = new Set();

const settings = { backend: stored(BACKEND), automatic: stored(AUTOMATIC) === "on" };

/** What a search would do: {backend, privacy, ddgs, words}. */
function describe() {
  return api("/api/search/describe", { body: { backend: settings.backend } });
}

/** The sentence that says where a question is sent. */
export async function privacyNotice() {
  return (await describe()).privacy;
}

/** Search the web. Before the first search with each backend, shows that the question leaves this machine. */
export async function search(query, { signal } = {}) {
  const { backend, privacy } = await describe();
  if (!announced.has(backend)) {
    announced.add(backend);
    toast(privacy, "warn");
  }
  return api("/api/search", { body: { query, backend }, signal });
}

/** The word of a message that triggers a search, or null; always null while automatic search is off. */
export async function reasonToSearch(text) {
  if (!settings.automatic) return null;
  return (await api("/api/search/reason", { body: { text } })).reason;
}

/** Fill an element with numbered sources. Titles and snippets are text; only http and https addresses are links. */
export function renderSources(hits, element) {
  element.replaceChildren();
  element.hidden = !hits?.length;
  if (element.hidden) return;
  const items = hits.map((hit) =>
    el("li", { value: hit.n }, link(hit), el("p.snippet", {}, hit.snippet ?? ""), el("p.address", {}, hit.url)),
  );
  element.append(el("ol.sources", { "aria-label": "Sources" }, items));
}

function link({ title, url }) {
  const text = title || url;
  let address;
  try {
    address = new URL(url);
  } catch {
    return el("span.title", {}, text);
  }
  if (!["http:", "https:"].includes(address.protocol)) return el("span.title", {}, text);
  return el("a.title", { href: address.href, target: "_blank", rel: "noopener noreferrer nofollow" }, text);
}

/** The settings of search: an element with labels, for a dialog or a panel. */
export function searchSettings() {
  const help = el("p.help", {});
  const error = el("p.error", { role: "alert", hidden: true });
  const address = el("input", {
    id: "search-address",
    type: "url",
    placeholder: "http://127.0.0.1:8888",
    value: settings.backend === "ddgs" ? "" : settings.backend,
    autocomplete: "off",
  });
  const kind = el(
    "select",
    { id: "search-backend" },
    el("option", { value: "" }, "Default of the server"),
    el("option", { value: "ddgs" }, "ddgs (public search engines)"),
    el("option", { value: "address" }, "My SearXNG server"),
  );
  kind.value = settings.backend && settings.backend !== "ddgs" ? "address" : settings.backend;
  const addressField = el("div.field", {}, el("label", { for: address.id }, "Address of the SearXNG server"), address);
  const automatic = el("input", { id: "search-automatic", type: "checkbox", checked: settings.automatic });

  async function show() {
    addressField.hidden = kind.value !== "address";
    const wanted = kind.value === "address" ? address.value.trim() : kind.value;
    if (kind.value === "address" && !wanted) return;
    settings.backend = wanted;
    error.hidden = true;
    try {
      const found = await describe();
      stored(BACKEND, wanted);
      help.textContent = found.backend === "ddgs" && !found.ddgs ? `${found.privacy} ${found.install}` : found.privacy;
    } catch (problem) {
      settings.backend = stored(BACKEND);
      error.textContent = problem.message;
      error.hidden = false;
    }
  }
  kind.addEventListener("change", show);
  address.addEventListener("change", show);
  automatic.addEventListener("change", () => {
    settings.automatic = automatic.checked;
    stored(AUTOMATIC, automatic.checked ? "on" : "off");
  });
  show();
  return el(
    "div.stack.search-settings",
    {},
    el("div.field", {}, el("label", { for: kind.id }, "Search with"), kind, help),
    addressField,
    error,
    el(
      "label.check",
      { for: automatic.id },
      automatic,
      el("span", {}, "Search without being asked when a message says: latest, today, news, a recent year …"),
    ),
  );
}
