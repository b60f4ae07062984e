// Runs before the first paint: the reader's own choice of dark or light, else the system's.
(() => {
  const root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = stored() ?? (dark() ? "dark" : "light");
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme")?.addEventListener("click", () => {
      root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* private mode: for this page only */ }
    });
  });
})();
