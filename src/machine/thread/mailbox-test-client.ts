/**
 * The kernel's side of the mailbox in a thread of its own, for the mailbox's test.
 * @module
 */
import { parentPort, workerData } from "node:worker_threads";
import { MailboxClient } from "./mailbox.ts";

const mmio = new MailboxClient(workerData);
const got = [mmio.read(0xfed90004, 4)];
mmio.write(2 ** 46 + 2, 2, 0xffff);
// Long enough for the server to fall asleep.
Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 30);
mmio.write(0xffffffff, 1, 7);
got.push(mmio.read(0, 1));
parentPort?.postMessage(got);
