import assert from "node:assert/strict";
import { test } from "node:test";
import { BugError } from "../../base/assert.ts";
import { isKernelError } from "../../base/errno.ts";
import { DomainIds } from "./domain-ids.ts";

test("alloc() gives each id but 0 once, lowest first, then fails with ENOSPC", () => {
  const ids = new DomainIds(64);
  for (let did = 1; did < 64; did++) assert.equal(ids.alloc(), did);
  assert.throws(
    () => ids.alloc(),
    (error) => isKernelError(error, "ENOSPC"),
  );
  assert.equal(ids.count, 63);
  ids.free(40);
  assert.equal(ids.alloc(), 40);
});

test("alloc() ends at the unit's limit within a word", () => {
  const ids = new DomainIds(16);
  for (let did = 1; did < 16; did++) ids.alloc();
  assert.throws(
    () => ids.alloc(),
    (error) => isKernelError(error, "ENOSPC"),
  );
});

test("alloc() passes over reserved ids", () => {
  const ids = new DomainIds(256);
  ids.reserve(1);
  ids.reserve(32);
  assert.equal(ids.alloc(), 2);
  assert.equal(ids.isUsed(32), true);
  assert.equal(ids.isUsed(33), false);
});

test("free() and reserve() of a wrong id are bugs", () => {
  const ids = new DomainIds(256);
  assert.throws(() => ids.free(0), BugError);
  assert.throws(() => ids.free(7), BugError);
  ids.reserve(7);
  assert.throws(() => ids.reserve(7), BugError);
});
