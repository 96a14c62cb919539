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
export async function redraw(id, answer) {
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const part = document.getElementById(id), fresh = page.getElementById(id);
  if (!fresh || fresh.isEqualNode(part)) return false;
  const focus = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
  part.toggleAttribute("data-live", fresh.hasAttribute("data-live"));
  part.replaceChildren(...fresh.childNodes);
  if (focus) part.querySelector(`[href="${CSS.escape(focus)}"]`)?.focus();
  return true;
}

export async function watch(id, isBusy = () => false) {
  let pause = OFTEN;
  while (isBusy() || document.getElementById(id).hasAttribute("data-live")) {
    await sleep(pause);
    await untilVisible();
    const changed = await fetch(location.href).then((answer) => redraw(id, answer)).catch(() => false); // away: look again
    pause = changed ? OFTEN : Math.min(pause * 1.3, SELDOM);
  }
}

document.querySelectorAll("[data-live]").forEach((part) => watch(part.id));
