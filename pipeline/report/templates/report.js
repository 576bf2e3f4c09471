"use strict";
// Draws the figures that lie in the page as JSON, in the colours of the screen, and again when these change.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const draw = () => {
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(`--${name}`).trim();
    const axis = { gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line") };
    const template = {
      layout: {
        font: { color: colour("text"), family: "system-ui, sans-serif", size: 13 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: axis,
        yaxis: axis,
        hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("text") }, align: "left" },
      },
    };
    for (const [name, figure] of Object.entries(figures)) {
      for (const trace of figure.data) {
        // Plotly picks the colour of a cell's text as if the paper behind the cell were white.
        if (trace.type === "heatmap") trace.textfont = { color: colour("text") };
      }
      const layout = { ...figure.layout, template };
      Plotly.react(`plot-${name}`, figure.data, layout, { responsive: true, displayModeBar: false });
    }
  };
  draw();
  dark.addEventListener("change", draw);
})();
