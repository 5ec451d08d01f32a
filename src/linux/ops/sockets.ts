import { check, K, libc } from '../libc.ts'
import type { OpContext } from './context.ts'
import { insideNetns } from './netns.ts'

/** The address families of loopback connections. */
export type SocketFamily = 'IPv4' | 'IPv6'

/**
 * An unconnected TCP socket that belongs to the network namespace mounted on `netns`, whichever thread connects it later. A socket is of the
 * namespace that it was made in for good, so only this moment has to be there. A caller that gave up does not leave the descriptor behind.
 */
export function openTcpSocket(context: OpContext, netns: string | undefined, family: SocketFamily): number {
  let fd = -1
  const open = (): void => {
    fd = check(`open an ${family} socket`, libc.socket(family === 'IPv4' ? K.AF_INET : K.AF_INET6, K.SOCK_STREAM | K.SOCK_CLOEXEC | K.SOCK_NONBLOCK, 0))
  }
  try {
    if (netns === undefined) open()
    else insideNetns(context, netns, open)
    context.commit()
    return fd
  } catch (error) {
    // Also when the thread could not come back from the namespace.
    if (fd !== -1) libc.close(fd)
    throw error
  }
}
