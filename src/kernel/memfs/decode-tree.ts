/**
 * The tree of a store, out of its inode slots: checked, so that every file has one name in one directory, and every
 * directory leads up to the root.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import {
  MEMFS_GENERATION_END,
  MEMFS_INLINE_NAME_BYTES,
  MEMFS_INODE,
  MEMFS_KIND_DIRECTORY,
  MEMFS_KIND_FILE,
  MEMFS_NAME,
  MEMFS_NAME_TEXT_BYTES,
  MEMFS_ORPHAN,
  MEMFS_ROOT_INO,
  MEMFS_SIZE_LAST,
  type MemfsInode,
} from "../../abi/memfs.ts";
import { cString } from "../../abi/struct.ts";
import { NAME_MAX } from "../../abi/uapi/fs.ts";
import { ByteWords, type WordReader } from "../../abi/words.ts";
import { apart, type IncomingMemory } from "../kho/incoming.ts";
import { type Inode, newInode } from "./inode.ts";

const NAME = cString(NAME_MAX + 1);

/** Where a tree is read from. */
export interface TreeSource {
  readonly incoming: IncomingMemory;
  /** Memory as it will be once a committed change is finished. */
  readonly words: WordReader;
}

/**
 * @param inodes - the slots that hold inodes, by inode number
 * @param nameSlots - the slots that hold parts of names; each must be used once, and they are taken out
 * @param slotPa - address of a slot
 * @returns all inodes, without extents yet
 * @throws {HandoverError}
 */
export function decodeTree(
  { incoming, words }: TreeSource,
  inodes: ReadonlyMap<number, MemfsInode>,
  nameSlots: Set<number>,
  slotPa: (number: number) => number,
  field: string,
): Map<number, Inode> {
  const tree = new Map<number, Inode>();
  for (const [ino, inode] of inodes) {
    const decoded = apart(incoming, { pa: slotPa(ino), struct: MEMFS_INODE }, () =>
      decodeInode(words, ino, inode, nameSlots, slotPa, field),
    );
    if (decoded !== null) tree.set(ino, decoded);
  }
  // With an inode that could not be read its name's parts are left over, and its children have no parent.
  if (tree.size === inodes.size)
    for (const number of nameSlots)
      apart(incoming, { pa: slotPa(number), struct: MEMFS_NAME }, () => {
        throw new HandoverError(
          `${field}.inode[${number}].owner`,
          "no inode has this part of a name",
        );
      });
  apart(incoming, { pa: slotPa(MEMFS_ROOT_INO), struct: MEMFS_INODE }, () =>
    refuseUnless(
      tree.get(MEMFS_ROOT_INO)?.kind === "directory",
      `${field}.inode[${MEMFS_ROOT_INO}].kind`,
      "the root is not a directory",
    ),
  );
  if (tree.size === inodes.size) checkParents(incoming, tree, slotPa, field);
  return tree;
}

function decodeInode(
  words: WordReader,
  ino: number,
  inode: MemfsInode,
  nameSlots: Set<number>,
  slotPa: (number: number) => number,
  field: string,
): Inode {
  const at = `${field}.inode[${ino}]`;
  checkInode(ino, inode, at);
  const parts = readNameParts(words, ino, inode, nameSlots, slotPa, at);
  return newInode({
    ino,
    kind: inode.kind === MEMFS_KIND_FILE ? "file" : "directory",
    generation: inode.generation,
    sizeBytes: inode.sizeBytes,
    name: decodeName(parts.text, inode, at),
    nameSlots: parts.slots,
    parent: inode.parent,
    isOrphan: inode.flags === MEMFS_ORPHAN,
  });
}

function checkInode(ino: number, inode: MemfsInode, at: string): void {
  const { kind, flags, nameBytes, generation, sizeBytes, parent, nameNext } = inode;
  const isOrphan = flags === MEMFS_ORPHAN;
  refuseUnless(
    flags === 0 || (isOrphan && kind === MEMFS_KIND_FILE),
    `${at}.flags`,
    `are ${flags}`,
  );
  const isNameless = ino === MEMFS_ROOT_INO || isOrphan;
  refuseUnless(
    isNameless ? nameBytes === 0 : nameBytes >= 1 && nameBytes <= NAME_MAX,
    `${at}.nameBytes`,
    `is ${nameBytes}`,
  );
  refuseUnless(
    generation >= 1 && generation < MEMFS_GENERATION_END,
    `${at}.generation`,
    `is ${generation}`,
  );
  refuseUnless(
    sizeBytes <= (kind === MEMFS_KIND_DIRECTORY ? 0 : MEMFS_SIZE_LAST),
    `${at}.sizeBytes`,
    `is ${sizeBytes}`,
  );
  refuseUnless(isNameless === (parent === 0), `${at}.parent`, `is ${parent}`);
  refuseUnless(
    (nameNext !== 0) === nameBytes > MEMFS_INLINE_NAME_BYTES,
    `${at}.nameNext`,
    `is ${nameNext} for a name of ${nameBytes} bytes`,
  );
}

/** Follows a name's slots. Each is taken out of `nameSlots`, so that no slot is followed twice. */
function readNameParts(
  words: WordReader,
  ino: number,
  inode: MemfsInode,
  nameSlots: Set<number>,
  slotPa: (number: number) => number,
  at: string,
): { text: Uint8Array; slots: number[] } {
  const text = new Uint8Array(NAME_MAX + 1);
  text.set(inode.name.subarray(0, inode.nameBytes));
  refuseUnless(isZero(inode.name.subarray(inode.nameBytes)), `${at}.name`, "goes on after its end");
  const slots: number[] = [];
  let link = `${at}.nameNext`;
  let number = inode.nameNext;
  for (let from = MEMFS_INLINE_NAME_BYTES; from < inode.nameBytes; from += MEMFS_NAME_TEXT_BYTES) {
    refuseUnless(nameSlots.delete(number), link, `${number} is no part of a name`);
    const part = MEMFS_NAME.read(words, slotPa(number));
    const partAt = `${at}.name[${slots.length}]`;
    refuseUnless(part.reserved === 0, `${partAt}.reserved`, `is ${part.reserved}`);
    refuseUnless(part.reserved2 === 0, `${partAt}.reserved2`, `is ${part.reserved2}`);
    refuseUnless(part.reserved3 === 0, `${partAt}.reserved3`, `is ${part.reserved3}`);
    refuseUnless(part.owner === ino, `${partAt}.owner`, `is ${part.owner}`);
    text.set(part.text.subarray(0, inode.nameBytes - from), from);
    refuseUnless(
      isZero(part.text.subarray(inode.nameBytes - from)),
      `${partAt}.text`,
      "goes on after the name's end",
    );
    slots.push(number);
    link = `${partAt}.next`;
    number = part.next;
  }
  if (slots.length > 0) refuseUnless(number === 0, link, `${number} follows the end of the name`);
  return { text, slots };
}

function decodeName(text: Uint8Array, inode: MemfsInode, at: string): string {
  if (inode.nameBytes === 0) return "";
  const name = NAME.read(new ByteWords(text), 0);
  const nul = text.indexOf(0);
  refuseUnless(
    name !== null &&
      nul === inode.nameBytes &&
      !name.includes("/") &&
      name !== "." &&
      name !== "..",
    `${at}.name`,
    "is not a file name",
  );
  return name;
}

/** Every parent is a directory, no two names of one are the same, and every way up ends at the root. */
function checkParents(
  incoming: IncomingMemory,
  tree: ReadonlyMap<number, Inode>,
  slotPa: (number: number) => number,
  field: string,
): void {
  const names = new Map<number, Set<string>>();
  const reachesRoot = new Set([MEMFS_ROOT_INO]);
  for (const inode of tree.values()) {
    if (inode.parent === 0) continue;
    apart(incoming, { pa: slotPa(inode.ino), struct: MEMFS_INODE }, () => {
      const at = `${field}.inode[${inode.ino}]`;
      refuseUnless(
        tree.get(inode.parent)?.kind === "directory",
        `${at}.parent`,
        `${inode.parent} is not a directory`,
      );
      const siblings = names.get(inode.parent) ?? new Set();
      refuseUnless(!siblings.has(inode.name), `${at}.name`, `"${inode.name}" is used twice`);
      names.set(inode.parent, siblings.add(inode.name));
      const way: number[] = [];
      const seen = new Set<number>();
      for (let at = inode.ino; !reachesRoot.has(at); at = tree.get(at)?.parent ?? 0) {
        refuseUnless(
          at !== 0 && !seen.has(at),
          `${field}.inode[${inode.ino}].parent`,
          "the way up does not end at the root",
        );
        seen.add(at);
        way.push(at);
      }
      for (const ino of way) reachesRoot.add(ino);
    });
  }
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

function refuseUnless(condition: boolean, field: string, problem: string): asserts condition {
  if (!condition) throw new HandoverError(field, problem);
}
