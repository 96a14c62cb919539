// Keeps the list of mails up to date: fetches the page and replaces the list when it changed.

const OFTEN = 150, SELDOM = 1000; // milliseconds between two requests; longer while nothing changes

async function refresh(list) {
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  const fresh = page.getElementById(list.id);
  if (!fresh || fresh.isEqualNode(list)) return false;
  const focus = list.contains(document.activeElement) && document.activeElement.getAttribute("href");
  list.replaceChildren(...fresh.childNodes);
  if (focus) list.querySelector(`[href="${CSS.escape(focus)}"]`)?.focus();
  return true;
}

async function watch(list) {
  for (let pause = OFTEN; ;) {
    await new Promise((done) => setTimeout(done, pause));
    if (document.hidden) continue;
    const changed = await refresh(list).catch(() => false); // the server is away: try again
    pause = changed ? OFTEN : Math.min(pause * 1.3, SELDOM);
  }
}

document.querySelectorAll("[data-inbox]").forEach(watch);
