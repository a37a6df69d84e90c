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
const zone = form.resolvedOptions().timeZone;
for (const place of document.querySelectorAll("[data-zone]")) {
  place.textContent = zone === "UTC" ? "Times are UTC." : `Times are ${zone}; hover for UTC.`;
}
