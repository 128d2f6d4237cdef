// An invitation's link has the entry code behind the #, which a browser sends to nobody. It goes out of the address bar, and along
// to the form of the registration, so that who scans a code need not type one.

const key = `portico-entry ${location.pathname.split("/")[2]}`;
try {
  const code = decodeURIComponent(location.hash.slice(1));
  if (code) {
    sessionStorage.setItem(key, code);
    history.replaceState(null, "", location.pathname);
  }
  const field = document.querySelector("input[name=code]");
  if (field && !field.value) field.value = sessionStorage.getItem(key) ?? "";
} catch {
  // Storage is off, or this is no code: it is typed then.
}
