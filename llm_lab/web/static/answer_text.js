// The text of an answer as elements: paragraphs, lists, code blocks, headings. Nothing in it is ever HTML, an image or a
// link, except that [1] links to the source of that number.
import { codeBlock, el } from "./lab.js";

/** Text with control characters as visible symbols, as the terminal chat shows them. */
export function printable(text) {
  return text
    .replaceAll("\r\n", "\n")
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt(0)))
    .replaceAll("\u007f", "\u2421")
    .replace(/[\u0080-\u009f\u200e\u200f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/g, "\ufffd");
}

const shown = new WeakMap(); // element: its blocks; a growing answer only changes at its end

/** Show an answer. plain: without formatting, for a base model's text. sources: what [1] links to. */
export function renderAnswer(element, text, { plain = false, sources = [], before = "" } = {}) {
  const blocks = plain ? [{ kind: "plain", text: printable(text), before: printable(before) }] : parse(printable(text));
  const links = new Map(sources.map(({ n, url }) => [String(n), url]));
  const keys = blocks.map((block) => JSON.stringify([block, [...links.keys()]]));
  const known = shown.get(element) ?? [];
  let same = 0;
  while (same < keys.length && keys[same] === known[same] && element.childNodes[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...blocks.slice(same).map((block) => build(block, links)));
  shown.set(element, keys);
}

const FENCE = /^\s{0,3}(```+|~~~+)\s*([\w+#.-]*)[^`]*$/;
const ITEM = /^(\s{0,3})(?:([-*+•])|(\d{1,3})[.)])\s+(.*)$/;
const HEADING = /^#{1,6}\s+(.+?)\s*#*$/;

function parse(text) {
  const blocks = [];
  let paragraph = [];
  const close = () => {
    if (paragraph.length) blocks.push({ kind: "paragraph", text: paragraph.join("\n") });
    paragraph = [];
  };
  const lines = text.replace(/^\n+|\s+$/g, "").split("\n");
  for (let index = 0; index < lines.length; index++) {
    const line = lines[index];
    const fence = FENCE.exec(line);
    const item = ITEM.exec(line);
    const heading = HEADING.exec(line);
    if (fence) {
      close();
      const code = [];
      while (++index < lines.length && !lines[index].trim().startsWith(fence[1])) code.push(lines[index]);
      blocks.push({ kind: "code", text: code.join("\n"), language: fence[2] });
    } else if (item) {
      close();
      const last = blocks.at(-1);
      const ordered = item[3] !== undefined;
      if (last?.kind === "list" && last.ordered === ordered && index && lines[index - 1].trim()) last.items.push(item[4]);
      else blocks.push({ kind: "list", ordered, start: Number(item[3] ?? 1), items: [item[4]] });
    } else if (heading) {
      close();
      blocks.push({ kind: "heading", text: heading[1] });
    } else if (!line.trim()) {
      close();
    } else {
      paragraph.push(line);
    }
  }
  close();
  return blocks;
}

function build(block, links) {
  if (block.kind === "plain") return el("p.plain", {}, block.before && el("span.before", {}, block.before), block.text);
  if (block.kind === "code") return codeBlock(block.text, "Copy");
  if (block.kind === "heading") return el("p.heading", {}, inline(block.text, links));
  if (block.kind === "list") {
    const items = block.items.map((item) => el("li", {}, inline(item, links)));
    return el(block.ordered ? "ol" : "ul", block.ordered ? { start: String(block.start) } : {}, items);
  }
  return el("p", {}, inline(block.text, links));
}

function inline(text, links) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*|\[\d{1,3}\])/).map((part) => {
    if (part.startsWith("`") && part.length > 2 && part.endsWith("`")) return el("code", {}, part.slice(1, -1));
    if (part.startsWith("**") && part.length > 4) return el("strong", {}, part.slice(2, -2));
    const url = /^\[\d+\]$/.test(part) && links.get(part.slice(1, -1));
    if (!url || !/^https?:\/\//.test(url)) return part;
    return el("a.cited", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, part);
  });
}
