// Before the first paint: apply the chosen theme, and mark that scripts are enabled.
document.documentElement.classList.add("js");
try {
  const theme = localStorage.getItem("mlcycle-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // A browser may deny storage to local files: the theme of the system is used.
}
