// The one-time code stands behind the # of the link, which a browser sends to nobody. It goes into the form, and out of the
// address bar; then the portal is asked whose it is, so that people learn their name, and a password manager keeps it.

const form = document.querySelector("form");

async function greet(code) {
  const answer = await fetch("/enrol/name", { method: "POST", body: new URLSearchParams({ code }) });
  if (!answer.ok) return;
  const { name } = await answer.json();
  const greeting = document.getElementById("greeting");
  greeting.querySelector("strong").textContent = name;
  greeting.hidden = false;
  form.elements.username.value = name;
}

const code = location.hash.slice(1) || form.elements.code.value;
if (code) {
  form.elements.code.value = code;
  document.getElementById("code-field").hidden = true;
  history.replaceState(null, "", location.pathname);
  form.elements.password.focus();
  greet(code).catch(() => {});
}
