/** What control-line.ts prints beside the agent's own lines. @module */

/** Ready for the first call, and after each: the connection is closed. */
export const CLOSED_LINE = "closed";
