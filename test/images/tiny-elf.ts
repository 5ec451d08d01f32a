/**
 * Two static programs of a few dozen instructions each, written as machine code, so that the test images need neither a compiler
 * nor anything from the network: `pause`, what the pause image of a pod runs, and `euid`, a set-uid program that tells who it is.
 */

/** The architectures that images are built for, with Go's names as in an image's platform. */
export type Architecture = 'amd64' | 'arm64'

/** Go's name of the architecture of this machine. Throws on one that the images are not built for. */
export function hostArchitecture(): Architecture {
  if (process.arch === 'x64') return 'amd64'
  if (process.arch === 'arm64') return 'arm64'
  throw new Error(`the test images are built for amd64 and arm64, not for ${process.arch}`)
}

/** A piece of a program: bytes that do not depend on where they stand, a label, or an instruction that refers to a label. */
type Piece = readonly number[] | { readonly label: string } | { readonly size: number; readonly to: string; encode(at: number, target: number): readonly number[] }

function assemble(pieces: readonly Piece[]): Uint8Array {
  const labels = new Map<string, number>()
  let length = 0
  for (const piece of pieces) {
    if ('label' in piece) labels.set(piece.label, length)
    else length += 'size' in piece ? piece.size : piece.length
  }
  const code: number[] = []
  for (const piece of pieces) {
    if ('label' in piece) continue
    if (!('size' in piece)) {
      code.push(...piece)
      continue
    }
    const target = labels.get(piece.to)
    if (target === undefined) throw new Error(`no label ${piece.to} in this program`)
    const bytes = piece.encode(code.length, target)
    if (bytes.length !== piece.size) throw new Error(`a reference to ${piece.to} takes ${bytes.length} bytes, not ${piece.size}`)
    code.push(...bytes)
  }
  return Uint8Array.from(code)
}

const label = (name: string): Piece => ({ label: name })
const text = (value: string): readonly number[] => [...Buffer.from(value)]
const le32 = (value: number): readonly number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, (value >>> 24) & 0xff]

/** x86-64: `opcode rel8`, the distance counted from the next instruction. */
const jump8 = (opcode: number, to: string): Piece => ({ size: 2, to, encode: (at, target) => [opcode, (target - at - 2) & 0xff] })

/** arm64 instructions are 32-bit words, little endian; branch distances count words. */
const a64 = {
  word: le32,
  movz: (register: number, value: number): readonly number[] => le32(0xd2800000 | (value << 5) | register),
  svc: le32(0xd4000001),
  branch: (condition: number, to: string): Piece => ({ size: 4, to, encode: (at, target) => le32(0x54000000 | ((((target - at) / 4) & 0x7ffff) << 5) | condition) }),
  cbnz: (register: number, to: string): Piece => ({ size: 4, to, encode: (at, target) => le32(0x35000000 | ((((target - at) / 4) & 0x7ffff) << 5) | register) }),
  adr: (register: number, to: string): Piece => ({
    size: 4,
    to,
    encode: (at, target) => le32(0x10000000 | (((target - at) & 3) << 29) | ((((target - at) >> 2) & 0x7ffff) << 5) | register),
  }),
  equal: 0,
  greater: 12,
}

/** SIGINT (2), SIGTERM (15) and SIGCHLD (17) as a signal set: bit n-1 stands for signal n. */
const pauseSignals = 0x14002

/**
 * Blocks SIGINT, SIGTERM and SIGCHLD and takes them one at a time: no handler, so nothing is interrupted half-way. A blocked signal is
 * queued for PID 1 too, whose unblocked default-action signals the kernel would drop. SIGCHLD reaps every orphan of a pod with a shared
 * PID namespace; the other two end the program with 0.
 */
const pause: Readonly<Record<Architecture, readonly Piece[]>> = {
  amd64: [
    [0x68, ...le32(pauseSignals)], // push the set
    [0x31, 0xff], // xor edi, edi           SIG_BLOCK
    [0x48, 0x89, 0xe6], // mov rsi, rsp
    [0x31, 0xd2], // xor edx, edx           no old set
    [0x41, 0xba, ...le32(8)], // mov r10d, 8     bytes in a set
    [0xb8, ...le32(14)], // mov eax, rt_sigprocmask
    [0x0f, 0x05], // syscall
    label('reap'),
    [0x48, 0x83, 0xcf, 0xff], // or rdi, -1       any child
    [0x31, 0xf6], // xor esi, esi           its status is of no interest
    [0xba, ...le32(1)], // mov edx, WNOHANG
    [0x45, 0x31, 0xd2], // xor r10d, r10d
    [0xb8, ...le32(61)], // mov eax, wait4
    [0x0f, 0x05], // syscall
    [0x85, 0xc0], // test eax, eax
    jump8(0x7f, 'reap'), // jg: one was reaped, there may be more
    label('wait'),
    [0x48, 0x89, 0xe7], // mov rdi, rsp
    [0x31, 0xf6], // xor esi, esi
    [0x31, 0xd2], // xor edx, edx           no timeout
    [0x41, 0xba, ...le32(8)], // mov r10d, 8
    [0xb8, ...le32(128)], // mov eax, rt_sigtimedwait
    [0x0f, 0x05], // syscall
    [0x83, 0xf8, 17], // cmp eax, SIGCHLD
    jump8(0x74, 'reap'), // je
    [0x83, 0xf8, 0xfc], // cmp eax, -EINTR      stopped and continued
    jump8(0x74, 'wait'), // je
    [0x31, 0xff], // xor edi, edi
    [0xb8, ...le32(231)], // mov eax, exit_group
    [0x0f, 0x05], // syscall
  ],
  arm64: [
    a64.movz(9, pauseSignals & 0xffff),
    a64.word(0xf2a00000 | ((pauseSignals >>> 16) << 5) | 9), // movk x9, #1, lsl 16
    a64.word(0xf81f0fe9), // str x9, [sp, #-16]!
    a64.movz(0, 0), // SIG_BLOCK
    a64.word(0x910003e1), // mov x1, sp
    a64.movz(2, 0), // no old set
    a64.movz(3, 8), // bytes in a set
    a64.movz(8, 135), // rt_sigprocmask
    a64.svc,
    label('reap'),
    a64.word(0x92800000), // mov x0, #-1     any child
    a64.movz(1, 0), // its status is of no interest
    a64.movz(2, 1), // WNOHANG
    a64.movz(3, 0),
    a64.movz(8, 260), // wait4
    a64.svc,
    a64.word(0x7100001f), // cmp w0, #0
    a64.branch(a64.greater, 'reap'), // one was reaped, there may be more
    label('wait'),
    a64.word(0x910003e0), // mov x0, sp
    a64.movz(1, 0),
    a64.movz(2, 0), // no timeout
    a64.movz(3, 8),
    a64.movz(8, 137), // rt_sigtimedwait
    a64.svc,
    a64.word(0x7100001f | (17 << 10)), // cmp w0, SIGCHLD
    a64.branch(a64.equal, 'reap'),
    a64.word(0x3100001f | (4 << 10)), // cmn w0, EINTR   stopped and continued
    a64.branch(a64.equal, 'wait'),
    a64.movz(0, 0),
    a64.movz(8, 94), // exit_group
    a64.svc,
  ],
}

const euidPrefix = 'Effective uid: '

/** Writes `Effective uid: N` and a line feed to standard output, in one system call. */
const euid: Readonly<Record<Architecture, readonly Piece[]>> = {
  amd64: [
    [0x48, 0x83, 0xec, 0x20], // sub rsp, 32
    [0xb8, ...le32(107)], // mov eax, geteuid
    [0x0f, 0x05], // syscall
    [0x48, 0x8d, 0x74, 0x24, 0x1f], // lea rsi, [rsp+31]
    [0xc6, 0x06, 0x0a], // mov byte [rsi], '\n'
    [0xb9, ...le32(10)], // mov ecx, 10
    label('digit'),
    [0x48, 0xff, 0xce], // dec rsi
    [0x31, 0xd2], // xor edx, edx
    [0xf7, 0xf1], // div ecx
    [0x80, 0xc2, 0x30], // add dl, '0'
    [0x88, 0x16], // mov [rsi], dl
    [0x85, 0xc0], // test eax, eax
    jump8(0x75, 'digit'), // jnz
    [0x48, 0x8d, 0x54, 0x24, 0x20], // lea rdx, [rsp+32]
    [0x48, 0x29, 0xf2], // sub rdx, rsi
    [0x52, 0x56], // push rdx; push rsi           second iovec
    [0x6a, euidPrefix.length], // push length
    { size: 7, to: 'prefix', encode: (at, target) => [0x48, 0x8d, 0x05, ...le32(target - at - 7)] }, // lea rax, [rip+prefix]
    [0x50], // push rax                      first iovec
    [0x48, 0x89, 0xe6], // mov rsi, rsp
    [0xbf, ...le32(1)], // mov edi, stdout
    [0xba, ...le32(2)], // mov edx, 2
    [0xb8, ...le32(20)], // mov eax, writev
    [0x0f, 0x05], // syscall
    [0x31, 0xff], // xor edi, edi
    [0xb8, ...le32(231)], // mov eax, exit_group
    [0x0f, 0x05], // syscall
    label('prefix'),
    text(euidPrefix),
  ],
  arm64: [
    a64.word(0xd10103ff), // sub sp, sp, #64
    a64.movz(8, 175), // geteuid
    a64.svc,
    a64.word(0x9100ffe1), // add x1, sp, #63
    a64.movz(2, 10),
    a64.word(0x39000022), // strb w2, [x1]   '\n'
    a64.movz(3, 10),
    label('digit'),
    a64.word(0xd1000421), // sub x1, x1, #1
    a64.word(0x1ac30804), // udiv w4, w0, w3
    a64.word(0x1b038085), // msub w5, w4, w3, w0
    a64.word(0x1100c0a5), // add w5, w5, #'0'
    a64.word(0x39000025), // strb w5, [x1]
    a64.word(0x2a0403e0), // mov w0, w4
    a64.cbnz(0, 'digit'),
    a64.word(0x910103e6), // add x6, sp, #64
    a64.word(0xcb0100c6), // sub x6, x6, x1
    a64.adr(7, 'prefix'),
    a64.movz(9, euidPrefix.length),
    a64.word(0xa9bf1be1), // stp x1, x6, [sp, #-16]!    second iovec
    a64.word(0xa9bf27e7), // stp x7, x9, [sp, #-16]!    first iovec
    a64.movz(0, 1), // stdout
    a64.word(0x910003e1), // mov x1, sp
    a64.movz(2, 2),
    a64.movz(8, 66), // writev
    a64.svc,
    a64.movz(0, 0),
    a64.movz(8, 94), // exit_group
    a64.svc,
    label('prefix'),
    text(euidPrefix),
  ],
}

/** A static executable with one read-and-execute segment (ELF-64, System V ABI, "Object files"). */
function executable(architecture: Architecture, code: Uint8Array): Buffer {
  const headerBytes = 64 + 56
  const base = 0x400000
  const header = Buffer.alloc(headerBytes)
  Buffer.from([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]).copy(header) // magic, 64-bit, little endian, version 1
  header.writeUInt16LE(2, 16) // ET_EXEC
  header.writeUInt16LE(architecture === 'amd64' ? 62 : 183, 18)
  header.writeUInt32LE(1, 20)
  header.writeBigUInt64LE(BigInt(base + headerBytes), 24) // entry
  header.writeBigUInt64LE(64n, 32) // program headers
  header.writeUInt16LE(64, 52)
  header.writeUInt16LE(56, 54)
  header.writeUInt16LE(1, 56)
  header.writeUInt32LE(1, 64) // PT_LOAD
  header.writeUInt32LE(5, 68) // read, execute
  header.writeBigUInt64LE(BigInt(base), 80)
  header.writeBigUInt64LE(BigInt(base), 88)
  header.writeBigUInt64LE(BigInt(headerBytes + code.length), 96)
  header.writeBigUInt64LE(BigInt(headerBytes + code.length), 104)
  header.writeBigUInt64LE(0x10000n, 112) // good for arm64's 64 KiB pages too
  return Buffer.concat([header, code])
}

/** The program of a pause image: waits for SIGTERM or SIGINT, reaps orphans meanwhile, exits 0. */
export const pauseProgram = (architecture: Architecture): Buffer => executable(architecture, assemble(pause[architecture]))

/** A program that prints its effective user id; meant to be owned by root with the set-uid bit. */
export const euidProgram = (architecture: Architecture): Buffer => executable(architecture, assemble(euid[architecture]))
