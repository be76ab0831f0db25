// A field with a list to choose from, which also accepts typed text: models, recipes.
import { api, el, fill } from "./lab.js";

const MODELS = {
  what: "Models",
  placeholder: "Choose a model",
  other: "a folder, a GGUF file or a name on the Hub",
  find: async () => (await api("/api/chat/models")).models,
};

/**
 * A combobox. letter: prefix of its ids. label: if there is no label element. onPick(name) is called on a choice; onType
 * with typed text, which is then the value. find: returns the list, [{name, about, group}].
 * Returns {element, input, show(name), open()}.
 */
export function createPicker({ letter, label, onPick, onType, id = `model-${letter}`, ...other }) {
  const about = { ...MODELS, ...other };
  const list = el("div.options", { role: "listbox", id: `options-${letter}`, "aria-label": about.what, hidden: true });
  const input = el("input", {
    id,
    type: "text",
    role: "combobox",
    "aria-label": label,
    "aria-controls": list.id,
    "aria-expanded": "false",
    "aria-autocomplete": "list",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: about.placeholder,
  });
  const element = el("div.picker", {}, input, list);
  let current = "";
  let models = [];
  let typed = false;
  let active = -1;
  let chosen = null; // the name that the arrow keys moved to; kept when the list arrives late

  const options = () => [...list.querySelectorAll("[role=option]")];

  function draw() {
    const words = typed ? input.value.trim().toLowerCase() : "";
    const found = models.filter(({ name, about }) => `${name} ${about}`.toLowerCase().includes(words));
    const groups = Map.groupBy ? Map.groupBy(found, (one) => one.group) : grouped(found);
    const children = [...groups].map(([name, rows]) =>
      el("div", { role: "group", "aria-label": name }, el("div.group", { "aria-hidden": "true" }, name), rows.map((row) => option(row.name, row.name, row.about))),
    );
    const given = input.value.trim();
    if (typed && given && !onType && !models.some(({ name }) => name === given)) {
      children.push(option(given, `Use “${given}”`, about.other));
    }
    fill(list, children.length ? children : el("p.none", {}, `None here yet. Type ${about.other}.`));
    activate(Math.max(0, options().findIndex((one) => one.dataset.name === (chosen ?? (typed ? given : current)))));
  }

  function option(name, text, about) {
    const one = el("div", { role: "option", "aria-selected": String(name === current) }, el("span.name", {}, text), about && el("small", {}, about));
    one.dataset.name = name;
    one.addEventListener("mousedown", (event) => event.preventDefault());
    one.addEventListener("click", () => pick(name));
    return one;
  }

  function activate(index) {
    const all = options();
    active = all.length ? (index + all.length) % all.length : -1;
    all.forEach((one, number) => {
      one.id = `option-${letter}-${number}`;
      one.classList.toggle("active", number === active);
    });
    if (active < 0) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", all[active].id);
    if (!list.hidden) all[active].scrollIntoView({ block: "nearest" });
  }

  async function open() {
    if (!list.hidden) return;
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    draw();
    try {
      models = await about.find();
      if (!list.hidden) draw();
    } catch (error) {
      fill(list, el("p.none", {}, error.message));
    }
  }

  function close() {
    list.hidden = true;
    typed = false;
    chosen = null;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function pick(name) {
    close();
    show(name);
    onPick(name);
  }

  function show(name) {
    current = name;
    input.value = name;
    input.title = name;
  }

  input.addEventListener("focus", () => input.select());
  input.addEventListener("click", open);
  input.addEventListener("blur", () => {
    close();
    input.value = current;
  });
  input.addEventListener("input", () => {
    typed = true;
    chosen = null;
    if (onType) {
      current = input.value;
      onType(current);
    }
    open();
    draw();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) open();
      else {
        activate(active + (event.key === "ArrowDown" ? 1 : -1));
        chosen = options()[active]?.dataset.name ?? null;
      }
    } else if (event.key === "Enter" && !(onType && (list.hidden || typed))) {
      event.preventDefault();
      if (list.hidden) open();
      else if (options()[active]) pick(options()[active].dataset.name);
    } else if (event.key === "Escape" && !list.hidden) {
      event.stopPropagation();
      close();
      input.value = current;
    }
  });
  return { element, input, show, open: () => (input.focus(), open()) };
}

function grouped(rows) {
  const groups = new Map();
  for (const row of rows) groups.set(row.group, [...(groups.get(row.group) ?? []), row]);
  return groups;
}
