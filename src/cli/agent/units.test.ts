/** The systemd units: that systemd reads them, and that they agree with the command's defaults. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { skipUnless } from "../../../tests/support/skip.ts";
import { VMS_MAX } from "../../agent/control/agent-state.ts";
import { CHANNELS_MAX } from "../../linux/unix-socket.ts";
import { SOCKET_PATH } from "../control/agent-options.ts";
import { STATE_FILE } from "./command.ts";

const ROOT = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "../../.." : "../../../..", import.meta.url),
);
const SERVICE = "holdfast-agent.service";
const SOCKET = "holdfast-agent.socket";

const read = (unit: string) => readFileSync(join(ROOT, "systemd", unit), "utf8");

function value(text: string, key: string): string {
  const found = new RegExp(`^${key}=(.*)$`, "m").exec(text)?.[1];
  assert.ok(found !== undefined, `${key}= is set`);
  return found;
}

test("the units agree with the command's defaults", () => {
  assert.equal(value(read(SOCKET), "ListenStream"), SOCKET_PATH);
  const runtime = join("/run", value(read(SERVICE), "RuntimeDirectory"));
  assert.equal(dirname(SOCKET_PATH), runtime);
  assert.equal(dirname(STATE_FILE), runtime);
  assert.equal(value(read(SERVICE), "RuntimeDirectoryPreserve"), "yes", "the socket stays");
});

test("the service can see what the agent looks at, and comes back whatever ends it", () => {
  const service = read(SERVICE);
  assert.doesNotMatch(service, /^(ProtectKernelModules|PrivateUsers|PrivateDevices)=yes/m);
  assert.equal(value(service, "StartLimitIntervalSec"), "0");
  const condition = value(service, "ConditionPathExists");
  assert.equal(value(read(SOCKET), "ConditionPathExists"), condition, "no socket without it");
});

test("as many sessions and channels are kept as an agent takes", () => {
  const service = read(SERVICE);
  assert.ok(Number(value(service, "FileDescriptorStoreMax")) >= VMS_MAX);
  // A channel and a session for each VM, and what else there is.
  assert.ok(Number(value(service, "LimitNOFILE")) >= CHANNELS_MAX + 2 * VMS_MAX);
});

const version = spawnSync("systemd-analyze", ["--version"], { encoding: "utf8" });

test("systemd-analyze finds nothing wrong in the units", {
  skip: skipUnless(
    "systemd's units",
    version.status === 0 ? null : "systemd-analyze is not installed: apt-get install systemd",
  ),
}, () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-"));
  try {
    // The program is not installed here.
    const service = read(SERVICE).replace("/usr/bin/holdfast", process.execPath);
    writeFileSync(join(folder, SERVICE), service);
    writeFileSync(join(folder, SOCKET), read(SOCKET));
    const units = [SERVICE, SOCKET].map((unit) => join(folder, unit));
    const { status, stderr } = spawnSync("systemd-analyze", ["verify", ...units], {
      encoding: "utf8",
    });
    // The key is of systemd 254.
    const said = stderr
      .split("\n")
      .filter((line) => line !== "" && !line.includes("'FileDescriptorStorePreserve'"));
    assert.deepEqual([status, said], [0, []]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
