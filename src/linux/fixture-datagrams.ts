import koffi from 'koffi'
import { K, check, lastErrno, libc } from './libc.ts'
import { unixSocketAddress } from './sd-notify.ts'

// For tests only: the service manager's end of sd_notify.

type Syscall = (...args: (number | Uint8Array | null)[]) => number
interface AsyncSyscall extends Syscall {
  async(...args: unknown[]): void
}

const lib = koffi.load(null)
const bind = lib.func('bind', 'int', ['int', 'void *', 'uint']) as unknown as Syscall
const setsockopt = lib.func('setsockopt', 'int', ['int', 'int', 'int', 'void *', 'uint']) as unknown as Syscall
const recv = lib.func('recv', 'long', ['int', 'void *', 'ulong', 'int']) as unknown as AsyncSyscall

const AF_UNIX = 1
const SO_RCVTIMEO = 20
const MSG_DONTWAIT = 0x40

/** A unix datagram socket that is really there. */
export class DatagramReceiver implements Disposable {
  readonly #fd = check('socket', libc.socket(AF_UNIX, K.SOCK_DGRAM | K.SOCK_CLOEXEC, 0))

  constructor(name: string) {
    const address = unixSocketAddress(name)
    check('bind', bind(this.#fd, address, address.length))
    const seconds = Buffer.alloc(16)
    seconds.writeBigInt64LE(20n)
    check('setsockopt', setsockopt(this.#fd, K.SOL_SOCKET, SO_RCVTIMEO, seconds, seconds.length))
  }

  /** What is in the queue now; a datagram between unix sockets is there when its send returns. */
  queued(): string | undefined {
    const buffer = Buffer.alloc(4096)
    const length = recv(this.#fd, buffer, buffer.length, MSG_DONTWAIT)
    return length < 0 ? undefined : buffer.toString('utf8', 0, length)
  }

  /** Waits for a datagram, in a thread of its own. */
  next(): Promise<string> {
    const buffer = Buffer.alloc(4096)
    return new Promise((resolve, reject) => {
      recv.async(this.#fd, buffer, buffer.length, 0, (error: Error | null, length: number) => {
        if (error !== null) reject(error)
        else if (length < 0) reject(new Error(`no datagram came (${lastErrno()})`))
        else resolve(buffer.toString('utf8', 0, length))
      })
    })
  }

  [Symbol.dispose](): void {
    libc.close(this.#fd)
  }
}
