// The code may stand behind the # of the link, which a browser sends to nobody. It goes into the form, for the person to
// compare with the terminal's, and out of the address bar.

const field = document.querySelector("#code-form input");
const code = location.hash.slice(1);
if (field && /^[A-Za-z-]{1,20}$/.test(code)) {
  field.value = code;
  field.form.querySelector("button").focus();
}
if (code) history.replaceState(null, "", location.pathname);
