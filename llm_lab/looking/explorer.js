  // The report: its data is in the page.
  const data = JSON.parse(document.getElementById("look-data").textContent);
  const { tokens } = data;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const named = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
  let colors = colorsOf(data.ramps, dark.matches, named);
  const repaints = [];
  const show = (root, set) =>
    explorer(root, {
      tokens,
      set,
      colors: () => colors,
      names: { grid: root.dataset.grid, large: root.dataset.large },
      flow: "flow" in root.dataset,
    });
  const heads = document.getElementById("look-heads");
  if (heads && data.attention) {
    const view = { mode: "0", hideFirst: false };
    const repaint = show(heads, attentionSet(tokens, () => data.attention, () => view));
    repaints.push(repaint);
    heads.querySelectorAll("input").forEach((input) => {
      input.addEventListener("change", () => {
        if (input.type === "checkbox") view.hideFirst = input.checked;
        else view.mode = input.value;
        heads.querySelectorAll(".look-scale").forEach((scale) => {
          scale.hidden = (scale.dataset.signed === "1") !== (view.mode === "difference");
        });
        repaint();
      });
    });
  }
  const positions = document.getElementById("look-positions");
  if (positions && data.similarity) repaints.push(show(positions, similaritySet(tokens, () => data.similarity)));
  const paint = () => {
    colors = colorsOf(data.ramps, dark.matches, named);
    repaints.forEach((repaint) => repaint());
  };
  paint();
  dark.addEventListener("change", paint);
  const lens = document.getElementById("look-lens");
  if (lens && data.lens) lensReader(lens, document.getElementById("look-lens-cell"), tokens, () => data);
