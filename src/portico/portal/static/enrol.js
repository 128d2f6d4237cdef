// The one-time code stands behind the # of the link, which a browser sends to nobody. It goes into the form, and out of the address bar.
const code = location.hash.slice(1);
if (code) {
  document.querySelector("input[name=code]").value = code;
  document.getElementById("code-field").hidden = true;
  document.getElementById("code-field").style.display = "none";
  history.replaceState(null, "", location.pathname);
  document.querySelector("input[name=password]").focus();
}
