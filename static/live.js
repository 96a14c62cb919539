// The live parts of a page: an element with data-live is fetched again, as the server draws it, until it comes without.
// So there is one way to draw everything, and without JavaScript a reload shows the same.

const OFTEN = 150, SELDOM = 1000; // milliseconds between two looks; more seldom while nothing changes

const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function untilVisible() {
  return new Promise((done) => {
    const look = () => document.hidden || (document.removeEventListener("visibilitychange", look), done());
    document.addEventListener("visibilitychange", look);
    look();
  });
}

// Draws the part with this id as it is in the answer. Returns whether it changed.
async function redraw(id, answer) {
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const part = document.getElementById(id), fresh = page.getElementById(id);
  if (!fresh || fresh.isEqualNode(part)) return false;
  const focus = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
  part.toggleAttribute("data-live", fresh.hasAttribute("data-live"));
  part.replaceChildren(...fresh.childNodes);
  if (focus) part.querySelector(`[href="${CSS.escape(focus)}"]`)?.focus();
  return true;
}

async function watch(id, isBusy = () => false) {
  let pause = OFTEN;
  while (isBusy() || document.getElementById(id).hasAttribute("data-live")) {
    await sleep(pause);
    await untilVisible();
    const changed = await fetch(location.href).then((answer) => redraw(id, answer)).catch(() => false); // away: look again
    pause = changed ? OFTEN : Math.min(pause * 1.3, SELDOM);
  }
}

// The race: sends the form without leaving the page, so that the mails can be watched while the visitor waits.
async function run(form, way) {
  let isWaiting = true;
  const began = performance.now();
  const body = new URLSearchParams({ way, count: form.elements.count.value });
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

document.querySelectorAll("[data-live]").forEach((part) => watch(part.id));
document.querySelectorAll("form#race").forEach(prepareRace);
