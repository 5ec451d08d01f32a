import type { GenericOptions, RuncOptions } from '../config/settings.ts'
import type { Any } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import { packAny } from './any.ts'
import { varint } from './varint.ts'

/** The runtime types whose shim reads containerd.runc.v1.Options. */
export function isRuncType(runtimeType: string): boolean {
  return runtimeType === 'io.containerd.runc.v2' || runtimeType === 'io.containerd.runc.v1'
}

/** `containerd.runc.v1.Options` for the shim of runc and crun. */
export function runcOptions(options: Omit<RuncOptions, 'kind'>): Init<Any> {
  return packAny('containerd.runc.v1.Options', {
    systemd_cgroup: options.systemdCgroup, binary_name: options.binaryName, root: options.root, shim_cgroup: options.shimCgroup,
    no_pivot_root: options.noPivotRoot, no_new_keyring: options.noNewKeyring, io_uid: options.ioUid, io_gid: options.ioGid,
    criu_image_path: options.criuImagePath, criu_work_path: options.criuWorkPath,
  })
}

/**
 * `containerd.runc.v1.CheckpointOptions` for the shim of runc and crun: the container goes on afterwards. `images` is where CRIU puts the processes, `work` its log.
 * Connections, sockets that somebody outside has, and file locks are no reason to refuse.
 */
export function runcCheckpointOptions({ images, work, terminal }: { readonly images: string; readonly work: string; readonly terminal: boolean }): Init<Any> {
  return packAny('containerd.runc.v1.CheckpointOptions', { image_path: images, work_path: work, open_tcp: true, external_unix_sockets: true, file_locks: true, terminal })
}

/**
 * `runtimeoptions.v1.Options` (type_url, config_path, config_body) for every other shim: three fields, encoded by hand because the
 * message belongs to no API of containerd's daemon.
 */
export function genericOptions(options: Omit<GenericOptions, 'kind'>): Init<Any> | undefined {
  if (options.typeUrl === '' && options.configPath === '' && options.configBody === '') return undefined
  return { type_url: 'runtimeoptions.v1.Options', value: Buffer.concat([field(1, options.typeUrl), field(2, options.configPath), field(3, options.configBody)]) }
}

function field(number: number, text: string): Buffer {
  if (text === '') return Buffer.alloc(0)
  const body = Buffer.from(text)
  return Buffer.concat([Buffer.from([(number << 3) | 2]), varint(body.length), body])
}
