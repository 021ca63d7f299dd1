// Before the first paint: the theme that was chosen, and that scripts run at all.
document.documentElement.classList.add("js");
try {
  const theme = localStorage.getItem("mlcycle-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // A browser may refuse storage to local files; the system's theme it is.
}
