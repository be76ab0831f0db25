// report.md as elements: headings, tables, lists, quotations, code, the run's own pictures. Everything else is text.
import { codeBlock, el } from "./lab.js";

const PUNCTUATION = /\\([!-/:-@[-`{-~])/g;
const plain = (text) => text.replace(PUNCTUATION, "$1").replace(/&lt;/g, "<").replace(/&amp;/g, "&");

/** Return report.md as elements. pictures: {name: address} of the pictures that it may show. */
export function reportElements(text, pictures, linkTo) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  const take = (test) => {
    const taken = [];
    while (at < lines.length && test(lines[at])) taken.push(lines[at++]);
    return taken;
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = /^(`{3,})(\w*)$/.exec(line);
    const heading = /^(#{1,4}) (.*)$/.exec(line);
    const picture = /^!\[([^\]]*)\]\(([\w.-]+)\)$/.exec(line);
    const folded = /^<details><summary>([^<]*)<\/summary>$/.exec(line);
    if (!line.trim() || line === "</details>") at += 1;
    else if (fence) {
      at += 1;
      blocks.push(codeBlock(take((one) => one !== fence[1]).join("\n")));
      at += 1;
    } else if (heading) {
      at += 1;
      blocks.push(el(`h${Math.min(4, heading[1].length + 1)}`, {}, ...inline(heading[2], linkTo)));
    } else if (picture) {
      at += 1;
      if (pictures[picture[2]]) blocks.push(el("img.report-picture", { src: pictures[picture[2]], alt: picture[1], loading: "lazy" }));
    } else if (folded) {
      at += 1;
      const inner = take((one) => one !== "</details>");
      blocks.push(el("details", {}, el("summary", {}, plain(folded[1])), ...reportElements(inner.join("\n"), pictures, linkTo)));
    } else if (line.startsWith("|")) blocks.push(table(take((one) => one.startsWith("|")), linkTo));
    else if (line.startsWith("- ")) {
      blocks.push(el("ul", {}, take((one) => one.startsWith("- ")).map((one) => el("li", {}, ...inline(one.slice(2), linkTo)))));
    } else if (line.startsWith(">")) {
      const inner = take((one) => one.startsWith(">")).map((one) => one.replace(/^> ?/, ""));
      blocks.push(el(inner[0].startsWith("**Warnings") ? "div.notice.warn" : "blockquote", {}, ...reportElements(inner.join("\n"), {}, linkTo)));
    } else {
      const words = take((one) => one.trim() && !/^(\||- |>|#{1,4} |`{3,}|!\[)/.test(one));
      if (words.length) blocks.push(el("p", {}, ...inline(words.join(" "), linkTo)));
      else blocks.push(el("p", {}, plain(lines[at++])));
    }
  }
  return blocks;
}

function table(lines, linkTo) {
  const rows = lines.map((line) => line.replace(/^\| ?| ?\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim()));
  const [head, , ...body] = rows;
  const cells = (row, tag) => row.map((cell) => el(tag, tag === "th" ? { scope: "col" } : {}, ...inline(cell, linkTo)));
  return el("div.wide", {}, el("table", {}, el("thead", {}, el("tr", {}, cells(head, "th"))), el("tbody", {}, body.map((row) => el("tr", {}, cells(row, "td"))))));
}

/** Code, bold and links to the reports of stages; for any other link, only its text. */
function inline(text, linkTo) {
  const parts = [];
  const pattern = /`([^`]+)`|(?<!\\)\*\*(.+?)(?<!\\)\*\*|(?<!\\)\[((?:[^\]\\]|\\.)*)\]\(([^)\s]*)\)/g;
  let end = 0;
  for (const found of text.matchAll(pattern)) {
    if (found.index > 0 && text[found.index - 1] === "\\") continue;
    parts.push(plain(text.slice(end, found.index)));
    end = found.index + found[0].length;
    const [, code, bold, words, address] = found;
    if (code !== undefined) parts.push(el("code", {}, code));
    else if (bold !== undefined) parts.push(el("b", {}, plain(bold)));
    else {
      const href = linkTo(address);
      parts.push(href ? el("a", { href }, plain(words)) : plain(words));
    }
  }
  return [...parts, plain(text.slice(end))].filter((part) => part !== "");
}
