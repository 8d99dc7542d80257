/**
 * What of a handover is content: fields in which another value is another handover, just as good, and why.
 *
 * A kernel cannot know what they should have been. It takes them as they are, and whatever that leads to must stay
 * with the file, the VM or the text that they belong to.
 * @module
 */

/** By kind of field: why other values may be right, and which (by their label) if not all that pass the rules. */
const CONTENT: Readonly<Record<string, readonly [why: string, labels?: RegExp]>> = {
  "kho_scratch.addr": ["scratch may lie wherever nothing is preserved"],
  "kho_scratch.size": ["scratch may lie wherever nothing is preserved"],
  "fdt_header.totalsize": ["what follows the blocks is not looked at"],
  "fdt_header.version": ["newer formats say by last_comp_version whether they can be read"],
  "fdt_header.last_comp_version": ["older ones can be read"],
  "fdt_header.boot_cpuid_phys": ["means nothing here"],
  fdt_struct: ["padding, and names of subtrees: unknown ones are left alone"],
  fdt_strings: ["bytes after the last string"],
  "kho_radix_node.table": ["another table that says the same"],
  "kho_radix_leaf.bitmap": ["pages that nobody claims stay preserved"],
  "kexec_metadata.previous_release": ["a text"],
  "kexec_metadata.kexec_count": ["a count for the log"],
  "luo_ser.compatible": ["bytes after the NUL", /top bit/],
  "luo_ser.liveupdate_num": ["a count for the log"],
  "luo_flb_ser.name": ["bytes after the NUL", /last byte/],
  "luo_session_ser.name": ["userspace's own"],
  "luo_session.luo_file_ser.compatible": ["bytes after the NUL", /last byte/],
  "luo_session.luo_file_ser.token": ["userspace's own"],
  "luo_session.luo_file memfd_luo_ser.pos": ["a file position"],
  "luo_session.luo_file memfd_luo_ser.size": ["a file size; pages need not be backed"],
  "luo_session.luo_file memfd_luo_ser.seals": ["any known seals"],
  "luo_session.luo_file memfd_luo_ser.nr_folios": [
    "fewer pages; the others are not claimed",
    /1|less|record before/,
  ],
  "luo_session.luo_file memfd_luo_ser.folios.flags": ["any known flags"],
  "luo_session.luo_file memfd_luo_folio_ser.pfn_flags": ["upstream's mark of a hole", /^0$/],
  "luo_session.luo_file iommufd_hwpt_ser.token": ["userspace's own"],
  "ss_table level 0": [
    "less access, or another page of the same file",
    /^0$|less|the next page|before/,
  ],
  "ss_table level 1": ["less access", /^0$|less/],
  "pci_function_ser.bar_size_lg2": ["a size cannot be probed while the device works", /first byte/],
  "memfs_root.compatible": ["bytes after the NUL", /last byte/],
  "memfs_superblock.commit": ["a change that was committed and had no log"],
  "memfs_superblock.name": ["userspace's own"],
  "memfs_superblock.limitBytes": ["a mount option"],
  "memfs_superblock.node": ["a mount option"],
  "memfs_superblock.nextGeneration": ["a counter"],
  "memfs_log_entry.number": ["nothing is committed, so the log means nothing"],
  "memfs_log_entry.table": ["nothing is committed, so the log means nothing"],
  "memfs_log_entry.word": ["nothing is committed, so the log means nothing"],
  "memfs_log_entry.low": ["nothing is committed, so the log means nothing"],
  "memfs_log_entry.high": ["nothing is committed, so the log means nothing"],
  "memfs_inode.generation": ["of a file in no session"],
  "memfs_inode.name": ["userspace's own"],
  "memfs_inode.sizeBytes": ["a file size; pages need not be backed, nor stay within it"],
  "memfs_inode.parent": ["another directory"],
  "memfs_name.text": ["userspace's own"],
  "memfs_extent_block.index": ["numbers extents"],
  "memfs_extent.state": ["of a file in no session"],
  "memfs_extent.offset": ["another place in the same file"],
};

/** Structures of which every field is content, and why. */
const CONTENT_STRUCTURES: readonly (readonly [prefix: string, why: string])[] = [
  ["free memfs_inode.", "the slot is free"],
  ["free memfs_extent.", "the slot is free"],
  ["unpreserved pci_function_ser.", "a hint: a function that is not so is probed"],
];

/**
 * @param label - of a wrong value; null: any
 * @returns why a field of this kind may have the value if it passes all rules; null: it may not
 */
export function handoverContent(kind: string, label: string | null): string | null {
  const structure = CONTENT_STRUCTURES.find(([prefix]) => kind.startsWith(prefix));
  // Some of their fields have rules of their own, so that not every one is sure to be accepted.
  if (structure !== undefined) return label === null ? null : structure[1];
  const entry = CONTENT[kind];
  if (entry === undefined) return null;
  const [why, labels] = entry;
  return label === null || labels === undefined || labels.test(label) ? why : null;
}
