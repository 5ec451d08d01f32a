import { arch } from 'node:process'
import koffi from 'koffi'
import { internal, invalidArgument } from '../errors/cri-error.ts'
import { errnoError, errnoName } from './errno.ts'

/** A raw call into libc: -1 says that errno is set. Pointers are Buffers, NULL is null. */
type Call = (...args: (number | bigint | Uint8Array | null)[]) => number

const lib = koffi.load(null)
const bind = (name: string, ...args: string[]): Call => lib.func(name, 'int', args) as Call
// syscall(2) is variadic, but on the ABIs that we run on (x86-64, arm64) integer arguments travel as in a plain function.
const bindSyscall = (number: number, ...args: string[]): Call => {
  const call = lib.func('syscall', 'long', ['long', ...args]) as Call
  return (...values) => call(number, ...values)
}

/** The functions of libc that src/linux uses. They block the calling thread. */
export const libc = {
  unshare: bind('unshare', 'int'),
  setns: bind('setns', 'int', 'int'),
  socket: bind('socket', 'int', 'int', 'int'),
  ioctl: bind('ioctl', 'int', 'ulong', 'void *'),
  mount: bind('mount', 'void *', 'void *', 'void *', 'ulong', 'void *'),
  umount2: bind('umount2', 'void *', 'int'),
  chdir: bind('chdir', 'void *'),
  umask: bind('umask', 'uint'),
  open: bind('open', 'void *', 'int', 'uint'),
  openat: bind('openat', 'int', 'void *', 'int', 'uint'),
  close: bind('close', 'int'),
  // Variadic as syscall(2) is, and as harmless.
  fcntl: bind('fcntl', 'int', 'int', 'int'),
  mkfifo: bind('mkfifo', 'void *', 'uint'),
  mkdirat: bind('mkdirat', 'int', 'void *', 'uint'),
  unlinkat: bind('unlinkat', 'int', 'void *', 'int'),
  renameat: bind('renameat', 'int', 'void *', 'int', 'void *'),
  readlinkat: bind('readlinkat', 'int', 'void *', 'void *', 'ulong'),
  flock: bind('flock', 'int', 'int'),
  getxattr: bind('getxattr', 'void *', 'void *', 'void *', 'ulong'),
  lgetxattr: bind('lgetxattr', 'void *', 'void *', 'void *', 'ulong'),
  setxattr: bind('setxattr', 'void *', 'void *', 'void *', 'ulong', 'int'),
  lsetxattr: bind('lsetxattr', 'void *', 'void *', 'void *', 'ulong', 'int'),
  poll: bind('poll', 'void *', 'ulong', 'int'),
  getsockopt: bind('getsockopt', 'int', 'int', 'int', 'void *', 'void *'),
  // Numbers from 424 on are the same on every architecture.
  pidfdSendSignal: bindSyscall(424, 'int', 'int', 'void *', 'uint'),
  openTree: bindSyscall(428, 'int', 'void *', 'uint'),
  moveMount: bindSyscall(429, 'int', 'void *', 'int', 'void *', 'uint'),
  pidfdOpen: bindSyscall(434, 'int', 'uint'),
  openat2: bindSyscall(437, 'int', 'void *', 'void *', 'ulong'),
  mountSetattr: bindSyscall(442, 'int', 'void *', 'uint', 'void *', 'ulong'),
} as const

/** Ends the process at once, without joining its threads. */
export const exitWithoutCleanup = lib.func('_exit', 'void', ['int']) as unknown as (status: number) => never

if (arch !== 'x64' && arch !== 'arm64') throw internal(`cri-shim runs on x86-64 and arm64, not on ${arch}`)

// O_DIRECTORY and O_NOFOLLOW differ between the two architectures.
const arm = arch === 'arm64'

/** Constants of the kernel's ABI. */
export const K = {
  O_RDONLY: 0,
  O_WRONLY: 1,
  O_RDWR: 2,
  O_CREAT: 0o100,
  O_EXCL: 0o200,
  O_NONBLOCK: 0o4000,
  O_DIRECTORY: arm ? 0o40000 : 0o200000,
  O_NOFOLLOW: arm ? 0o100000 : 0o400000,
  O_CLOEXEC: 0o2000000,
  O_PATH: 0o10000000,
  AT_FDCWD: -100,
  AT_REMOVEDIR: 0x200,
  AT_EMPTY_PATH: 0x1000,
  AT_RECURSIVE: 0x8000,
  OPEN_TREE_CLONE: 1,
  MOVE_MOUNT_F_EMPTY_PATH: 4,
  MOUNT_ATTR_IDMAP: 0x100000,
  CLONE_FS: 0x200,
  CLONE_NEWUSER: 0x10000000,
  CLONE_NEWNET: 0x40000000,
  MNT_DETACH: 2,
  UMOUNT_NOFOLLOW: 8,
  AF_INET: 2,
  AF_INET6: 10,
  SOCK_STREAM: 1,
  SOCK_DGRAM: 2,
  SOCK_CLOEXEC: 0o2000000,
  SOCK_NONBLOCK: 0o4000,
  F_DUPFD_CLOEXEC: 1030,
  SIOCGIFFLAGS: 0x8913,
  SIOCSIFFLAGS: 0x8914,
  IFF_UP: 1,
  NS_GET_NSTYPE: 0xb703,
  SOL_SOCKET: 1,
  SO_PEERCRED: 17,
  LOCK_EX: 2,
  LOCK_NB: 4,
  POLLIN: 1,
  RESOLVE_NO_XDEV: 0x01,
  RESOLVE_NO_MAGICLINKS: 0x02,
  RESOLVE_NO_SYMLINKS: 0x04,
  RESOLVE_IN_ROOT: 0x10,
  NSFS_MAGIC: 0x6e736673,
} as const

/** errno of the last failed call of this thread, by name. */
export function lastErrno(): string {
  return errnoName(koffi.errno())
}

/** `result`, or the CriError of errno when it is -1. */
export function check(what: string, result: number): number {
  if (result === -1) throw errnoError(what, lastErrno())
  return result
}

/** A NUL-terminated string for libc. A NUL inside would cut it short and so name another thing: INVALID_ARGUMENT. */
export function cString(value: string | Uint8Array): Uint8Array {
  const bytes = typeof value === 'string' ? Buffer.from(value) : value
  if (bytes.includes(0)) throw invalidArgument(`${JSON.stringify(Buffer.from(bytes).toString())} contains a NUL byte`)
  return Buffer.concat([bytes, Buffer.of(0)])
}

/** Retries a call that a signal interrupted. */
export function restarting(call: () => number): number {
  for (;;) {
    const result = call()
    if (result !== -1 || lastErrno() !== 'EINTR') return result
  }
}

/** Opens a path and gives a raw descriptor with O_CLOEXEC; Node does not know it and does not close it with the worker. */
export function openPath(what: string, path: string, flags: number, mode = 0): number {
  return check(what, restarting(() => libc.open(cString(path), flags | K.O_CLOEXEC, mode)))
}

/** Runs `use` with a descriptor and closes it, whatever happens. */
export function withFd<T>(fd: number, use: (fd: number) => T): T {
  try {
    return use(fd)
  } finally {
    libc.close(fd)
  }
}

/** openat2(2) with the given RESOLVE_ flags; -1 and errno on failure. */
export function openat2(dirFd: number, path: string | Uint8Array, flags: number, resolve: number): number {
  const how = Buffer.alloc(24)
  how.writeBigUInt64LE(BigInt(flags | K.O_CLOEXEC), 0)
  how.writeBigUInt64LE(BigInt(resolve), 16)
  for (let attempt = 0; ; attempt += 1) {
    const fd = restarting(() => libc.openat2(dirFd, cString(path), how, how.length))
    // EAGAIN: a rename or mount elsewhere raced with the resolution of a "..". The kernel asks for another try.
    if (fd !== -1 || attempt >= 128 || lastErrno() !== 'EAGAIN') return fd
  }
}

/** The remedy is part of the message when the kernel is too old for openat2. */
export function openat2Error(what: string): Error {
  const name = lastErrno()
  return name === 'ENOSYS' ? errnoError(`${what}: openat2 is missing; cri-shim needs Linux 5.6 or newer`, name) : errnoError(what, name)
}
