import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BugError } from "../../base/assert.ts";
import type { Mmio } from "../machine.ts";
import { createMailbox, MailboxClient, MailboxServer } from "./mailbox.ts";
import { startWorker } from "./start-worker.ts";

describe("mailbox", () => {
  it("carries address, size and value both ways, between threads, also when one side sleeps", async () => {
    const mailbox = createMailbox();
    const log: string[] = [];
    const mmio: Mmio = {
      read(pa, size) {
        log.push(`read ${pa.toString(16)} ${size}`);
        return 0xfedcba98;
      },
      write(pa, size, value) {
        log.push(`write ${pa.toString(16)} ${size} ${value.toString(16)}`);
      },
    };
    const server = new MailboxServer(mailbox, mmio);
    const worker = startWorker("mailbox-test-client", mailbox, []);
    let got: unknown = null;
    worker.once("message", (message) => {
      got = message;
    });
    worker.once("error", (error) => {
      got = error;
    });
    while (got === null) {
      for (let i = 0; i < 100; i++) server.serve();
      server.sleep(1);
      // Messages of the worker are taken here.
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.deepEqual(got, [0xfedcba98, 0xfedcba98]);
    assert.deepEqual(log, [
      "read fed90004 4",
      `write ${(2 ** 46 + 2).toString(16)} 2 ffff`,
      "write ffffffff 1 7",
      "read 0 1",
    ]);
    await worker.terminate();
  });

  it("refuses an unaligned access in the kernel's thread, before the hardware sees it", () => {
    const mailbox = createMailbox();
    const client = new MailboxClient(mailbox);
    assert.throws(() => client.read(2, 4), BugError);
    const server = new MailboxServer(mailbox, {
      read: () => 0,
      write() {},
    });
    assert.equal(server.serve(), false);
  });

  it("a new client waits for the answer to a request that an ended kernel left", () => {
    const mailbox = createMailbox();
    // As a client that was ended inside an access leaves it.
    const words = new Int32Array(mailbox);
    words[1] = 4;
    words[0] = 1;
    const server = new MailboxServer(mailbox, { read: () => 1, write() {} });
    assert.equal(server.serve(), true);
    new MailboxClient(mailbox);
    assert.equal(server.serve(), false);
  });
});
