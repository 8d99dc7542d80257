import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { encodeChannelMessage } from "../../host/serial-endpoint.ts";
import { ChannelRelay } from "./channel-relay.ts";

test("a client that does not read keeps nobody from ending the relay", async () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-relay-"));
  const path = join(folder, "agent.sock");
  const relay = await ChannelRelay.listen(path);
  const lines: string[] = [];
  const client = createConnection(path).pause();
  try {
    await new Promise<void>((resolve) => {
      relay.connect((line) => {
        lines.push(line);
        resolve();
      });
    });
    assert.deepEqual(lines, [encodeChannelMessage({ channel: 1, kind: "open" })]);
    const line = encodeChannelMessage({ channel: 1, kind: "line", line: "x".repeat(60_000) });
    for (let i = 0; i < 12; i++) assert.equal(relay.receive(line), true);
    // Its kernel ends first, as in a jump.
    relay.kernelEnded();
    await Promise.race([
      relay.close(),
      once(AbortSignal.timeout(10_000), "abort").then(() => assert.fail("it does not end")),
    ]);
    assert.equal(existsSync(path), false);
  } finally {
    client.destroy();
    rmSync(folder, { recursive: true });
  }
});
