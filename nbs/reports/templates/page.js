"use strict";
// On every page: theme, folded code, and boxes that scroll.
const root = document.documentElement;

function toggle(id, start, act) {
  const button = document.getElementById(id);
  if (!button) return;
  button.hidden = false;
  button.setAttribute("aria-pressed", start);
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    act(on);
  });
}

const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
toggle("theme-toggle", dark, (on) => {
  root.dataset.theme = on ? "dark" : "light";
  try {
    localStorage.setItem("mlcycle-theme", root.dataset.theme);
  } catch {
    // The theme is not saved.
  }
});

toggle("code-toggle", false, (on) => {
  root.classList.toggle("with-code", on);
  for (const code of document.querySelectorAll("details.code")) code.open = on || code.closest(".failed") !== null;
});

// On a small screen the table of contents is above the text, and folded.
if (matchMedia("(max-width: 68rem)").matches) {
  for (const contents of document.querySelectorAll(".contents details")) contents.open = false;
}

// On a small screen a large plot is as wide as the screen; a button shows it larger.
for (const plot of document.querySelectorAll(".plot.large")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "enlarge";
  button.textContent = "Enlarge plot";
  button.setAttribute("aria-pressed", false);
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", plot.classList.toggle("enlarged"));
    nameBoxes();
  });
  plot.after(button);
}

// A box that scrolls can be reached by keyboard; others cannot.
function nameBoxes() {
  for (const box of document.querySelectorAll(".wide")) {
    const scrolls = box.scrollWidth > box.clientWidth;
    if (scrolls) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", box.dataset.label || "Table, scrolls horizontally");
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    }
  }
}
nameBoxes();
addEventListener("resize", nameBoxes);
document.addEventListener("toggle", nameBoxes, true);
