// The form for a job: accounts and QOS that are not good in the chosen partition can't be chosen.

const partition = document.querySelector("select[name=partition]");

function follow() {
  for (const option of document.querySelectorAll("option[data-partitions]")) {
    const good = !partition.value || option.dataset.partitions.split(" ").includes(partition.value);
    option.disabled = option.hidden = !good;
    if (!good && option.selected) option.parentElement.value = "";
  }
}

if (partition) {
  partition.addEventListener("change", follow);
  follow();
}
