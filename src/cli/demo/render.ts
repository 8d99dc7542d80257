/** The demo as a person watches it: lines as things happen, a table at the end. @module */
import { formatBytes } from "../../base/units.ts";
import { columns, phaseLine } from "../text.ts";
import type { DemoEvent } from "./events.ts";
import type { FramesInJump } from "./machines.ts";
import type { JumpTimes, Verdict } from "./result.ts";

/** Turns what happens, in order, into lines for a person. */
export class Narrator {
  #enteredNs = 0;

  /** Lines for an event; none where a person need not see it. */
  event(event: DemoEvent): string[] {
    switch (event.event) {
      case "boot":
        return event.update === 0
          ? [`boot ${event.release}, cold`]
          : [phaseLine("boot", event.atNs - this.#enteredNs, event.release)];
      case "phase": {
        const line = phaseLine(event.name, event.endNs - event.startNs);
        return event.name === "preflight" ? ["", `update ${event.update}`, line] : [line];
      }
      case "restored":
        return [phaseLine(event.vm, event.blackoutNs, "blackout: it runs again")];
      case "handover":
        return [
          `  handover of ${formatBytes(event.bytes)} beside ${formatBytes(event.guestBytes)} of guest memory`,
        ];
      case "failure":
        return [`  FAILED ${event.vm} ${event.phase}: ${event.message}`];
      case "ran":
        return [
          phaseLine(
            "run",
            event.endNs - event.startNs,
            `the guests received ${event.received} frames and queued ${event.transmitted}`,
          ),
        ];
      case "faults":
        return event.functions.map(
          ({ function: name, reads, writes }) =>
            `  FAULTS    ${name}: ${reads} reads and ${writes} writes were blocked`,
        );
      case "vm":
      case "leaks":
        return [];
    }
  }

  jump(times: JumpTimes, { received, transmitted }: FramesInJump): string[] {
    this.#enteredNs = times.enteredNs;
    return [
      phaseLine(
        "jump",
        times.enteredNs - times.requestedNs,
        `no kernel; ${received} frames came into guest memory, ${transmitted} were sent from it`,
      ),
    ];
  }
}

/** The final table. */
export function table({ result, transmitted, problems, notes }: Verdict): string {
  const rows = [
    [
      "vm",
      "memory",
      "sent to it",
      "received",
      "sent by it",
      "lost",
      "corrupt",
      "in jumps",
      "faults",
      "copied",
      "blackout ms",
    ],
    ...result.vms.map((vm, i) => [
      vm.name,
      formatBytes(vm.memoryBytes),
      String(vm.frames.sent),
      String(vm.frames.received),
      String(transmitted[i]),
      String(vm.frames.lost),
      String(vm.frames.corrupt),
      String(vm.frames.duringJump),
      String(vm.dmaFaults),
      formatBytes(vm.guestBytesCopied),
      vm.blackoutMs.map((value) => value.toFixed(1)).join(" "),
    ]),
  ];
  const lines = columns(rows, (column) => column > 0 && column < rows[0].length - 1);
  const { leaks, handover } = result;
  lines.push(
    "",
    `updates ${result.updates}; handover ${formatBytes(handover.bytes)} beside ${formatBytes(handover.guestBytes)} of guest memory`,
    `leaked: ${leaks.pages} pages, ${leaks.pins} pins, ${leaks.domains} domains`,
  );
  lines.push(...notes.map((note) => `note: ${note}`));
  if (problems.length === 0)
    lines.push("nothing lost, nothing corrupt, nothing copied, nothing leaked");
  else lines.push(...problems.map((problem) => `PROBLEM: ${problem}`));
  return lines.join("\n");
}
