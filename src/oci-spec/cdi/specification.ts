/**
 * A CDI specification (github.com/cncf-tags/container-device-interface, SPEC.md 0.3.0 to 1.1.0): which device a name means and what a
 * container gets with it. Checked; fields that were not given are absent.
 */
export interface CdiSpecification {
  /** `vendor/class` */
  readonly kind: string
  readonly devices: ReadonlyMap<string, CdiEdits>
  /** For every container that gets at least one of the devices. */
  readonly edits: CdiEdits
}

export interface CdiEdits {
  readonly env: readonly string[]
  readonly deviceNodes: readonly CdiDeviceNode[]
  readonly netDevices: readonly CdiNetDevice[]
  readonly hooks: readonly CdiHook[]
  readonly mounts: readonly CdiMount[]
  readonly intelRdt?: CdiIntelRdt
  readonly additionalGids: readonly number[]
}

export interface CdiDeviceNode {
  readonly path: string
  readonly hostPath?: string
  readonly type?: 'b' | 'c' | 'u' | 'p'
  readonly major?: number
  readonly minor?: number
  readonly fileMode?: number
  /** Letters out of `rwm`, or `none`. */
  readonly permissions?: string
  readonly uid?: number
  readonly gid?: number
}

export interface CdiNetDevice {
  readonly hostInterfaceName: string
  readonly name: string
}

export type CdiHookName = 'prestart' | 'createRuntime' | 'createContainer' | 'startContainer' | 'poststart' | 'poststop'

export interface CdiHook {
  readonly hookName: CdiHookName
  readonly path: string
  readonly args?: readonly string[]
  readonly env?: readonly string[]
  readonly timeout?: number
}

export interface CdiMount {
  readonly hostPath: string
  readonly containerPath: string
  readonly options?: readonly string[]
  readonly type?: string
}

export interface CdiIntelRdt {
  readonly closID?: string
  readonly l3CacheSchema?: string
  readonly memBwSchema?: string
  readonly schemata?: readonly string[]
  readonly enableMonitoring?: boolean
}
