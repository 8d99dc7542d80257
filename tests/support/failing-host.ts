/**
 * A host whose n-th call fails: to see that what was done before it is undone.
 * @module
 */
import { KernelError } from "../../src/base/errno.ts";
import type { Host } from "../../src/host/host.ts";

export interface FailingHost {
  readonly host: Host;
  /** @returns the call that failed, or null; no other fails from here on */
  stop(): string | null;
}

/** The host, whose call number `failing` (from 0) fails with EIO; calls after that one do not. */
export function failingHost(host: Host, failing: number): FailingHost {
  let calls = 0;
  let failed: string | null = null;
  const proxy = new Proxy(host, {
    get(target, name: keyof Host) {
      const member = Reflect.get(target, name, target) as unknown;
      if (typeof member !== "function") return member;
      return (...args: unknown[]) => {
        if (calls++ === failing) {
          failed = name;
          throw new KernelError("EIO", name, "injected");
        }
        return member.apply(target, args) as unknown;
      };
    },
  });
  return {
    host: proxy,
    stop: () => {
      calls = Number.POSITIVE_INFINITY;
      return failed;
    },
  };
}
