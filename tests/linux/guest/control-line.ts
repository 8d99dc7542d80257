/**
 * An operator's connection to the agent for a test: each line of standard input is a call, made on a connection of its own;
 * what the agent answers is printed, line by line, and at last `closed`.
 *
 * Why not the command each time: starting it costs seconds on an emulated processor.
 * Usage: control-line.js SOCKET
 * @module
 */
import { connect } from "node:net";
import { createInterface } from "node:readline";
import { CLOSED_LINE } from "./control-mark.ts";

const [path] = process.argv.slice(2);

createInterface({ input: process.stdin }).on("line", (call) => {
  const socket = connect(path);
  const { id } = JSON.parse(call) as { readonly id: number };
  createInterface({ input: socket }).on("line", (line) => {
    console.log(line);
    const message = JSON.parse(line) as { readonly id?: number; readonly event?: unknown };
    if (message.id === id && message.event === undefined) socket.end();
  });
  // What ends it shows in the answer that does not come.
  socket.once("error", (error) => console.log(JSON.stringify({ id, event: `${error}` })));
  socket.once("close", () => console.log(CLOSED_LINE));
  socket.write(`${call}\n`);
});
console.log(CLOSED_LINE);
