/**
 * Wrong values for a field of a handover: none, one, all ones, neighbours, half bits, addresses that are unaligned,
 * out of RAM, of another object, or of the structure itself.
 * @module
 */
import type { Ram } from "../../src/machine/physical-memory.ts";
import type { HandoverField } from "./handover-map.ts";

/** One value, as bytes, with a name for messages. */
export interface WrongValue {
  readonly label: string;
  readonly bytes: Uint8Array;
}

/** Objects whose addresses are tried in every field that can hold an address. */
const OTHERS = [
  "fdt_header.magic",
  "luo_ser.compatible",
  "kho_radix_node.table",
  "memfs_superblock.magic",
  "ss_table level 0",
  "luo_session.luo_file memfd_luo_ser.pos",
  "kho_scratch.addr",
  "pci_ser.count",
];

/** Each value once, and none that the field has. */
export function wrongValues(
  ram: Ram,
  field: HandoverField,
  all: readonly HandoverField[],
): readonly WrongValue[] {
  const old = new Uint8Array(field.sizeBytes);
  ram.read(field.pa, old);
  const found: WrongValue[] = field.isNumber
    ? wrongNumbers(old, field, all)
    : [
        { label: "zeros", bytes: new Uint8Array(old.length) },
        { label: "all ones", bytes: new Uint8Array(old.length).fill(0xff) },
        { label: "another first byte", bytes: old.map((byte, i) => (i === 0 ? byte ^ 1 : byte)) },
        {
          label: "another last byte",
          bytes: old.map((byte, i) => (i === old.length - 1 ? byte ^ 1 : byte)),
        },
      ];
  const seen = new Set([old.join()]);
  return found.filter(({ bytes }) => {
    const text = bytes.join();
    return !seen.has(text) && seen.add(text);
  });
}

function wrongNumbers(
  old: Uint8Array,
  field: HandoverField,
  all: readonly HandoverField[],
): WrongValue[] {
  const bits = BigInt(8 * old.length);
  const value = fromBytes(old);
  const values: [label: string, value: bigint][] = [
    ["0", 0n],
    ["1", 1n],
    ["all ones", -1n],
    ["one more", value + 1n],
    ["one less", value - 1n],
    ["double", 2n * value],
    ["another top bit", value ^ (1n << (bits - 1n))],
  ];
  if (old.length === 8) {
    const page = (pa: number) => BigInt(pa - (pa % 4096));
    const low = value & 4095n;
    values.push(
      ["the next page", value + 4096n],
      ["the page before", value - 4096n],
      ["the next record", value + 64n],
      ["the record before", value - 64n],
      ["unaligned", value + 8n],
      ["the largest number", 2n ** 53n - 1n],
      ["out of RAM", value + (1n << 40n)],
      ["its own page", page(field.pa)],
    );
    for (const kind of OTHERS) {
      const other = all.find((one) => one.kind === kind);
      if (other === undefined) continue;
      values.push([`the page of ${kind}`, page(other.pa)]);
      values.push([`the page of ${kind}, low bits kept`, page(other.pa) + low]);
    }
  }
  return values.map(([label, number]) => ({ label, bytes: toBytes(number, old.length) }));
}

function fromBytes(bytes: Uint8Array): bigint {
  return bytes.reduceRight((value, byte) => value * 256n + BigInt(byte), 0n);
}

function toBytes(value: bigint, sizeBytes: number): Uint8Array {
  return Uint8Array.from({ length: sizeBytes }, (_, i) => Number((value >> BigInt(8 * i)) & 255n));
}
