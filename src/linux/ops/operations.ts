import { cgroupPathsOf, oomKillCount, removeCgroup } from './cgroups.ts'
import { fsInfo, mkdirAll, mkfifo, resolvePath, statPath, writeFileAtomic } from './files.ts'
import { probeHost } from './host.ts'
import { mountImage } from './image-mount.ts'
import { mkdirInRoot, readInRoot, statInRoot } from './in-root.ts'
import { idmapProblem, mountIdmapped } from './idmap.ts'
import { takeLock } from './lock.ts'
import { isMountPoint, mount, mountAll, mountInfo, mountsUnder, unmount } from './mounts.ts'
import { createNetns, deleteNetns, interfaceAddresses, netnsExists } from './netns.ts'
import { killSession, processStat, sendSignal } from './processes.ts'
import { openTcpSocket } from './sockets.ts'
import { relabelTree } from './relabel.ts'
import { diskUsage, removeTree } from './trees.ts'
import { createUserNamespace, deleteUserNamespace, userNamespaceExists } from './userns.ts'
import { cgroupUsage, networkCounters } from './usage.ts'

/** Everything that a syscall worker does. Each takes the context of its call first, and only what structured clone carries. */
export const operations = {
  cgroupPathsOf,
  cgroupUsage,
  createNetns,
  createUserNamespace,
  deleteNetns,
  deleteUserNamespace,
  diskUsage,
  fsInfo,
  idmapProblem,
  interfaceAddresses,
  isMountPoint,
  killSession,
  mkdirAll,
  mkdirInRoot,
  mkfifo,
  mount,
  mountAll,
  mountIdmapped,
  mountImage,
  mountInfo,
  mountsUnder,
  netnsExists,
  networkCounters,
  oomKillCount,
  openTcpSocket,
  probeHost,
  processStat,
  readInRoot,
  relabelTree,
  removeCgroup,
  removeTree,
  resolvePath,
  sendSignal,
  statInRoot,
  statPath,
  takeLock,
  unmount,
  userNamespaceExists,
  writeFileAtomic,
} as const

export type Operations = typeof operations
export type OperationName = keyof Operations

/** The arguments of an operation after its context. */
export type OperationArgs<K extends OperationName> = Parameters<Operations[K]> extends [unknown, ...infer Rest] ? Rest : []
export type OperationResult<K extends OperationName> = ReturnType<Operations[K]>
