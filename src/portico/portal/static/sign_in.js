// What stands behind the # is the next page's: the form carries it through the sign-in, as a redirect by itself would.

document.querySelector("form").action += location.hash;
