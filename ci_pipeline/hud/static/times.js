// Times in the reader's zone; the exact UTC is shown on hover. Without this script all times are UTC.
const form = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit",
});
for (const time of document.querySelectorAll("time[datetime]")) {
  const moment = new Date(time.dateTime);
  if (!Number.isNaN(moment.getTime())) {
    time.title = moment.toISOString().replace("T", " ").replace("Z", " UTC");
    time.textContent = form.format(moment);
  }
}
for (const zone of document.querySelectorAll("[data-zone]")) {
  zone.textContent = `Times are ${form.resolvedOptions().timeZone}; hover for UTC.`;
}
