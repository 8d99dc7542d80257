/**
 * Registers and descriptors of the Intel 82574L Ethernet controller, as far as a driver with legacy descriptors
 * uses them.
 *
 * Why: shared by our model of the device and by the driver in our guest, which runs on QEMU's e1000e as well.
 * Source: Intel 82574L Datasheet rev. 3.4 §7.1.4 (receive descriptors), §7.2.10 (transmit descriptors), §10
 *   (registers); agrees with what QEMU's hw/net/e1000e_core.c implements
 * @module
 */

export const E1000E_VENDOR_ID = 0x8086;
export const E1000E_DEVICE_ID = 0x10d3;
/** Bytes of BAR 0. */
export const E1000E_BAR0_BYTES = 128 * 1024;

// Offsets in BAR 0. All registers are 32 bits.
export const E1000_CTRL = 0x0000;
/** Alias of CTRL. */
export const E1000_CTRL_DUP = 0x0004;
export const E1000_STATUS = 0x0008;
export const E1000_EERD = 0x0014;
export const E1000_CTRL_EXT = 0x0018;
/** Causes that are pending. Reading clears them; a write clears the bits that are 1 in it. */
export const E1000_ICR = 0x00c0;
/** Interrupt throttling interval. */
export const E1000_ITR = 0x00c4;
export const E1000_ICS = 0x00c8;
export const E1000_IMS = 0x00d0;
export const E1000_IMC = 0x00d8;
export const E1000_RCTL = 0x0100;
export const E1000_TCTL = 0x0400;
export const E1000_TIPG = 0x0410;
export const E1000_RDBAL = 0x2800;
export const E1000_RDBAH = 0x2804;
export const E1000_RDLEN = 0x2808;
export const E1000_RDH = 0x2810;
export const E1000_RDT = 0x2818;
export const E1000_RDTR = 0x2820;
export const E1000_RXDCTL = 0x2828;
export const E1000_RADV = 0x282c;
export const E1000_TDBAL = 0x3800;
export const E1000_TDBAH = 0x3804;
export const E1000_TDLEN = 0x3808;
export const E1000_TDH = 0x3810;
export const E1000_TDT = 0x3818;
export const E1000_TIDV = 0x3820;
export const E1000_TXDCTL = 0x3828;
export const E1000_TADV = 0x382c;
export const E1000_TARC0 = 0x3840;
/** Statistics, cleared by a read. Missed packets: no descriptor was free. */
export const E1000_MPC = 0x4010;
export const E1000_GPRC = 0x4074;
export const E1000_GPTC = 0x4080;
export const E1000_RNBC = 0x40a0;
export const E1000_TPR = 0x40d0;
export const E1000_TPT = 0x40d4;
/** Multicast table: 128 registers. */
export const E1000_MTA = 0x5200;
export const E1000_MTA_COUNT = 128;
/** Receive addresses: 16 pairs of low and high registers. */
export const E1000_RAL0 = 0x5400;
export const E1000_RAH0 = 0x5404;
export const E1000_RA_COUNT = 16;

/** Addresses that reach the registers of queue 0 as well, from the time of the 82542. */
export const E1000_ALIASES: Readonly<Record<number, number>> = {
  [E1000_CTRL_DUP]: E1000_CTRL,
  264: E1000_RDTR,
  272: E1000_RDBAL,
  276: E1000_RDBAH,
  280: E1000_RDLEN,
  288: E1000_RDH,
  296: E1000_RDT,
  1056: E1000_TDBAL,
  1060: E1000_TDBAH,
  1064: E1000_TDLEN,
  1072: E1000_TDH,
  1080: E1000_TDT,
  1088: E1000_TIDV,
};

export const E1000_CTRL_FD = 1 << 0;
/** No new requests upstream; STATUS.GIO_MASTER_ENABLE then reads 0. */
export const E1000_CTRL_GIO_MASTER_DISABLE = 1 << 2;
/** Set link up. */
export const E1000_CTRL_SLU = 1 << 6;
export const E1000_CTRL_SPD_1000 = 2 << 8;
/** Resets the device, not its PCI registers; clears itself. */
export const E1000_CTRL_RST = 1 << 26;
export const E1000_STATUS_FD = 1 << 0;
export const E1000_STATUS_LU = 1 << 1;
export const E1000_STATUS_SPEED_1000 = 2 << 6;
export const E1000_STATUS_GIO_MASTER_ENABLE = 1 << 19;

/** EERD: start in bit 0, done in bit 1, word address from bit 2, data from bit 16. */
export const E1000_EERD_START = 1 << 0;
export const E1000_EERD_DONE = 1 << 1;
export const E1000_EERD_ADDR_SHIFT = 2;
export const E1000_EERD_DATA_SHIFT = 16;
/** Words of NVM. Words 0 to 2 are the MAC address; all of them add up to NVM_SUM. */
export const E1000_NVM_WORDS = 64;
export const E1000_NVM_CHECKSUM_WORD = 63;
export const E1000_NVM_SUM = 0xbaba;

/** Causes in ICR, ICS, IMS and IMC. */
export const E1000_ICR_TXDW = 1 << 0;
export const E1000_ICR_TXQE = 1 << 1;
export const E1000_ICR_LSC = 1 << 2;
export const E1000_ICR_RXDMT0 = 1 << 4;
export const E1000_ICR_RXO = 1 << 6;
export const E1000_ICR_RXT0 = 1 << 7;
/** Some cause is pending. Read only. */
export const E1000_ICR_INT_ASSERTED = 0x80000000;

export const E1000_RCTL_EN = 1 << 1;
/** Unicast, multicast: accept all. */
export const E1000_RCTL_UPE = 1 << 3;
export const E1000_RCTL_MPE = 1 << 4;
/** Long packets: above 1522 bytes. */
export const E1000_RCTL_LPE = 1 << 5;
export const E1000_RCTL_RDMTS_SHIFT = 8;
/** Which bits of the address index the multicast table. */
export const E1000_RCTL_MO_SHIFT = 12;
/** Accept broadcast. */
export const E1000_RCTL_BAM = 1 << 15;
/** Buffer size: 2048 >> field, or 16 times that with BSEX. */
export const E1000_RCTL_BSIZE_SHIFT = 16;
export const E1000_RCTL_BSEX = 1 << 25;
/** Strip the Ethernet CRC. */
export const E1000_RCTL_SECRC = 1 << 26;
export const E1000_RCTL_FLXBUF_SHIFT = 27;

export const E1000_TCTL_EN = 1 << 1;
/** Pad short packets. */
export const E1000_TCTL_PSP = 1 << 3;
/** Collision threshold (15) and distance (63 in full duplex), as §4.6.6 wants them. */
export const E1000_TCTL_CT_SHIFT = 4;
export const E1000_TCTL_COLD_SHIFT = 12;
export const E1000_TARC_ENABLE = 1 << 10;
/** Write-back threshold of one descriptor: the reset value of RXDCTL. */
export const E1000_RXDCTL_WTHRESH_1 = 1 << 16;

/** Address valid. */
export const E1000_RAH_AV = 0x80000000;

/** Both legacy descriptors have 16 bytes. A ring's length is a multiple of 128 bytes, its base of 16. */
export const E1000_DESCRIPTOR_BYTES = 16;
export const E1000_RING_LENGTH_MASK = 0xfff80;

/** Legacy receive descriptor: u64 buffer, u16 length, u16 checksum, u8 status, u8 errors, u16 special. */
export const E1000_RXD_BUFFER = 0;
export const E1000_RXD_LENGTH = 8;
export const E1000_RXD_STATUS = 12;
export const E1000_RXD_STAT_DD = 1 << 0;
export const E1000_RXD_STAT_EOP = 1 << 1;
/** Legacy transmit descriptor: u64 buffer, u16 length, u8 checksum offset, u8 command, u8 status, u8 css, u16 special. */
export const E1000_TXD_BUFFER = 0;
export const E1000_TXD_LENGTH = 8;
export const E1000_TXD_COMMAND = 11;
export const E1000_TXD_STATUS = 12;
export const E1000_TXD_CMD_EOP = 1 << 0;
/** Insert the FCS. */
export const E1000_TXD_CMD_IFCS = 1 << 1;
/** Report status: write DD back. */
export const E1000_TXD_CMD_RS = 1 << 3;
/** Extended descriptor: not a legacy one. */
export const E1000_TXD_CMD_DEXT = 1 << 5;
export const E1000_TXD_STAT_DD = 1 << 0;

/** Largest frame without LPE: header, VLAN tag, 1500 bytes of payload; its FCS not counted. */
export const E1000_MAX_FRAME_BYTES = 1518;
/** Shorter frames are padded to this on the wire. */
export const E1000_MIN_FRAME_BYTES = 60;
export const ETHERNET_FCS_BYTES = 4;
