/** A JSON object whose shape only a plugin knows. */
export type JsonObject = { readonly [key: string]: unknown }

/** One port of a pod that is published on the node. */
export interface CniPortMapping {
  /** Port on the node; a mapping without one (0) is left out. */
  readonly hostPort: number
  readonly containerPort: number
  /** `tcp`, `udp` or `sctp`, in any case. */
  readonly protocol: string
  /** Address of the node to listen on; empty or absent: all. */
  readonly hostIP?: string | undefined
}

/** Rates in bits per second, bursts in bits; 0: no limit. */
export interface CniBandwidth {
  readonly ingressRate: number
  readonly ingressBurst: number
  readonly egressRate: number
  readonly egressBurst: number
}

/** The pod's DNS settings, for plugins with the capability `dns`. */
export interface CniPodDns {
  readonly servers: readonly string[]
  readonly searches: readonly string[]
  readonly options: readonly string[]
}

/** One address range, for IPAM plugins with the capability `ipRanges`. */
export interface CniIpRange {
  readonly subnet: string
  readonly rangeStart?: string | undefined
  readonly rangeEnd?: string | undefined
  readonly gateway?: string | undefined
}

/** What the plugins are told of a pod. */
export interface CniPod {
  /** Sandbox id: CNI_CONTAINERID. */
  readonly id: string
  readonly namespace: string
  readonly name: string
  readonly uid: string
  /** Path of the pod's network namespace. Empty, or a path that is none any more, is allowed for DEL. */
  readonly netnsPath: string
  readonly annotations?: Readonly<Record<string, string>> | undefined
  readonly portMappings?: readonly CniPortMapping[] | undefined
  readonly bandwidth?: CniBandwidth | undefined
  readonly dns?: CniPodDns | undefined
  /** The pod's cgroup parent as the kubelet gave it. */
  readonly cgroupPath?: string | undefined
  readonly ipRanges?: readonly (readonly CniIpRange[])[] | undefined
  readonly mac?: string | undefined
  /** Further names of the pod, per network name. */
  readonly aliases?: Readonly<Record<string, readonly string[]>> | undefined
  readonly infinibandGuid?: string | undefined
  readonly deviceId?: string | undefined
  /** Added to CNI_ARGS after the Kubernetes ones. */
  readonly extraArgs?: Readonly<Record<string, string>> | undefined
}

/** One plugin of a network, with its configuration as it stands in the file. */
export interface PluginConf {
  readonly type: string
  /** Capabilities that are declared as true. */
  readonly capabilities: ReadonlySet<string>
  readonly raw: JsonObject
}

/** One network: a conflist, or a single-plugin conf made into a list. */
export interface NetworkList {
  readonly name: string
  /** As the plugins get it: `cniVersion`, or the newest of `cniVersions` that is supported here. */
  readonly cniVersion: string
  readonly disableCheck: boolean
  readonly plugins: readonly PluginConf[]
  /** A conflist that says all of this by itself: what the result cache keeps for DEL. */
  readonly source: string
}

/** A network together with where it comes from. */
export interface LoadedNetwork {
  readonly file: string
  readonly list: NetworkList
}

/** A configuration file that is not used, and why. */
export interface ConfProblem {
  readonly file: string
  readonly problem: string
  /** The file was good before; that version stays in use until it is good again or gone. */
  readonly lastGoodInUse: boolean
}

/** DNS settings that a network's plugins returned. */
export interface CniResultDns {
  readonly nameservers?: readonly string[]
  readonly domain?: string
  readonly search?: readonly string[]
  readonly options?: readonly string[]
}

/** One interface of the pod, or of the node's side of it (then without `sandbox`). */
export interface PodInterface {
  readonly name: string
  readonly mac: string
  /** Path of the network namespace that it is in, empty for the node's. */
  readonly sandbox: string
  readonly ips: readonly { readonly ip: string; readonly gateway: string }[]
}

/** What ADD made. */
export interface PodNetwork {
  /** The pod's addresses on its first interface, the preferred one first. */
  readonly ips: readonly string[]
  readonly interfaces: readonly PodInterface[]
  /** Each network's result as its last plugin printed it. */
  readonly results: readonly { readonly network: string; readonly ifName: string; readonly result: JsonObject }[]
  /** One entry per network. */
  readonly dns: readonly CniResultDns[]
  /** The same in the layout that containerd's own CRI plugin keeps as `CNIResult` in its sandbox metadata. */
  readonly asGoCniResult: JsonObject
}

/** Which of a dual-stack pod's addresses comes first: an address family, or whatever the plugins put first. */
export type IpPreference = 'ipv4' | 'ipv6' | 'cni'

/** One network of one container as the result cache knows it. */
export interface CachedAttachment {
  readonly network: string
  readonly containerId: string
  readonly ifName: string
}

/** Told of every plugin that ran. */
export type ObservePlugin = (plugin: string, command: string, seconds: number, failed: boolean) => void
