import { redraw, watch } from "../../static/live.js";

// The race: sends the form without leaving the page, so that the mails can be watched while the visitor waits.
async function run(form, way) {
  let isWaiting = true;
  const began = performance.now();
  const body = new URLSearchParams(new FormData(form));
  body.set("way", way);
  const answering = fetch(form.action, { method: "POST", body }).finally(() => (isWaiting = false));
  const watching = watch("runs", () => isWaiting);
  const answer = await answering;
  const waited = Math.round(performance.now() - began);
  if (answer.ok) note(form.querySelector(`[value=${way}]`).textContent, waited);
  await redraw(answer.ok ? "runs" : "refused", answer);
  await watching;
  return answer.ok;
}

const measured = new Map();

function note(way, waited) {
  const all = [...measured.set(way, waited)].map(([name, milliseconds]) => `${name} ${milliseconds} ms`);
  document.getElementById("browser").textContent = `Until the answer was in your browser: ${all.join(", ")}.`;
}

function prepareRace(form) {
  const buttons = [...form.querySelectorAll("button")];
  const all = form.querySelector("#all");
  all.hidden = false;
  const start = async (...ways) => {
    if (!form.reportValidity()) return;
    buttons.forEach((button) => (button.disabled = true));
    try {
      for (const way of ways) if (!(await run(form, way))) break;
    } finally {
      buttons.forEach((button) => (button.disabled = false));
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    start(event.submitter.value);
  });
  all.addEventListener("click", () => start("request", "thread", "queue"));
}

document.querySelectorAll("form#race").forEach(prepareRace);
