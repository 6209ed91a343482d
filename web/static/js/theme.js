// Sets the chosen theme before anything is painted. A classic script: modules would come too late.
(() => {
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage is switched off: use the system's theme.
  }
})();
