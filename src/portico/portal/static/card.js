// A card's link has the seat's name and secret behind the #, which a browser sends to nobody. They go into the form, and out of
// the address bar. A person still presses the button: who opens somebody's link by mistake should see whose it is.

const form = document.querySelector("form");
const [name, secret] = decodeURIComponent(location.hash.slice(1)).split(".");
if (name) {
  form.elements.name.value = name;
  form.elements.secret.value = secret ?? "";
  history.replaceState(null, "", location.pathname);
  (secret ? form.querySelector("button") : form.elements.secret).focus();
}
