// Who we are to the server, and calls to it. The cookie is bound to the path below /api/ that the
// server gave us; localStorage knows the path, so that a reload finds it.

const PLACE = "openmodal.place";

let place = localStorage.getItem(PLACE);
let signedOut = () => {};

/** Call `then` when the server knows us no more. */
export function onSignedOut(then) {
  signedOut = then;
}

/** The path of a call, such as a download's. */
export function path(of) {
  return `/api/${place}${of}`;
}

/** Show a token; the one of the address, if there is one, which then leaves the address. */
export async function enter(token) {
  const answer = await fetch("/session", { method: "POST", body: token });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  place = said.place;
  localStorage.setItem(PLACE, place);
}

/** The token in the address, removed from it; "" if there is none. */
export function tokenOfAddress() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return "";
  history.replaceState(null, "", "/#/sandboxes");
  return decodeURIComponent(found[1]);
}

/** Call the server: GET, or POST with `body` (an object, as JSON; or anything that fetch sends). */
export async function call(of, { method = "GET", body } = {}) {
  if (!place) return signOut();
  const answer = await fetch(path(of), {
    method,
    body: body && body.constructor === Object ? JSON.stringify(body) : body,
  });
  if (answer.status === 401) return signOut();
  if (answer.ok) return (answer.headers.get("content-type") || "").includes("json") ? answer.json() : answer.text();
  const text = await answer.text();
  let sentence = text || `the server answered ${answer.status}`;
  try {
    sentence = JSON.parse(text).error;
  } catch {
    // It was no JSON: the text is the sentence.
  }
  throw new Error(sentence);
}

function signOut() {
  signedOut();
  throw new Error("the page must be opened anew, with a token");
}
