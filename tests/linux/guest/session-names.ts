/**
 * Makes a session of each name and closes it: what fails is still there. `session-names.js NAME...`; prints a JSON object of
 * name and errno, null where there was none.
 * @module
 */
import { isKernelError } from "../../../src/base/errno.ts";
import { createSession, retrieveSession } from "../../../src/host/liveupdate.ts";
import { LinuxHost } from "../../../src/linux/linux-host.ts";

const host = new LinuxHost();
const device = host.open("/dev/liveupdate", 0);

function codeOf(action: () => number): string | null {
  try {
    host.close(action());
    return null;
  } catch (error) {
    if (!isKernelError(error)) throw error;
    return error.code;
  }
}

const names = process.argv.slice(2);
host.print(
  JSON.stringify({
    create: names.map((name) => codeOf(() => createSession(host, device, name))),
    // Of the kernel before: ENOENT, where nothing is left.
    retrieve: names.map((name) => codeOf(() => retrieveSession(host, device, name))),
  }),
);
