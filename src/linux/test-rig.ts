/**
 * Tests on the Linux that they run on, each of which leaves no descriptor behind.
 * @module
 */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { EndpointEvent } from "../host/channel.ts";
import { type Ffi, loadFfi } from "./ffi.ts";
import type { UnixEndpoint } from "./unix-socket.ts";

export interface LinuxTest {
  readonly ffi: Ffi;
  /** Removed after the test. */
  readonly folder: string;
}

/** Makes tests that are skipped for a reason, or run and checked for leaked descriptors. */
export function linuxTests(skip: string | false) {
  return (name: string, run: (context: LinuxTest) => void | Promise<void>): void => {
    test(name, { skip }, async () => {
      const ffi = loadFfi();
      const folder = mkdtempSync(join(tmpdir(), "holdfast-linux-"));
      const before = new Set(openDescriptors());
      const left = () => openDescriptors().filter((entry) => !before.has(entry));
      try {
        await run({ ffi, folder });
        // Node opens some of its own for a moment.
        for (let i = 0; i < 50 && left().length > 0; i++) await sleep(10);
        assert.deepEqual(left(), [], "descriptors are left");
      } finally {
        rmSync(folder, { recursive: true, force: true });
      }
    });
  };
}

/** What is open, without the descriptor that lists it. */
export function openDescriptors(): string[] {
  return readdirSync("/proc/self/fd")
    .map((fd) => `${fd} ${targetOf(fd)}`)
    .filter((entry) => !entry.endsWith(" gone"));
}

function targetOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return "gone";
    throw error;
  }
}

/** Polls until as many events have come; more would be there, too. @throws {AssertionError} when they do not come */
export function eventsOf(endpoint: UnixEndpoint, count: number): EndpointEvent[] {
  const events: EndpointEvent[] = [];
  const end = performance.now() + 5000;
  while (events.length < count) {
    assert.ok(performance.now() < end, `${events.length} of ${count} events: ${tell(events)}`);
    events.push(...endpoint.poll(1e9));
  }
  events.push(...endpoint.poll(0));
  assert.equal(events.length, count, tell(events));
  return events;
}

function tell(events: readonly EndpointEvent[]): string {
  return events.map((event) => `${event.kind}`).join(", ");
}
