// What the caller's role allows. The service judges each call; the page only leaves out what it would refuse.

import { createContext, html, useContext } from "./vendor/htm-preact.js";

const ROLES = ["read", "write", "admin"];

/** The session, for the views below it. */
export const Caller = createContext(null);

/** Whether a session's role covers `role`. */
export const may = (session, role) => ROLES.indexOf(session?.role) >= ROLES.indexOf(role);

/** The same for the session of the page. */
export const useMay = (role) => may(useContext(Caller), role);

/** Its children, for callers with the role only. */
export const Needs = ({ role, children }) => (useMay(role) ? html`${children}` : null);
