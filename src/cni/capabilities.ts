import { invalidArgument } from '../errors/cri-error.ts'
import type { CniPod, JsonObject, PluginConf } from './types.ts'

/**
 * Everything that may go into a plugin's `runtimeConfig`, by capability (the CNI project's CONVENTIONS.md, and containerd's own
 * `io.kubernetes.cri.pod-annotations`).
 */
export function capabilityArgsOf(pod: CniPod): JsonObject {
  const args: Record<string, unknown> = {}
  if (pod.annotations !== undefined) args['io.kubernetes.cri.pod-annotations'] = pod.annotations
  const ports = (pod.portMappings ?? []).filter(({ hostPort }) => hostPort > 0)
  if (ports.length > 0) {
    args['portMappings'] = ports.map(({ hostPort, containerPort, protocol, hostIP }) => ({
      hostPort,
      containerPort,
      protocol: protocol.toLowerCase(),
      ...(hostIP === undefined || hostIP === '' ? {} : { hostIP }),
    }))
  }
  if (pod.bandwidth !== undefined) args['bandwidth'] = pod.bandwidth
  if (pod.dns !== undefined) args['dns'] = pod.dns
  if (pod.cgroupPath !== undefined && pod.cgroupPath !== '') args['cgroupPath'] = pod.cgroupPath
  if (pod.ipRanges !== undefined) args['ipRanges'] = pod.ipRanges
  if (pod.mac !== undefined) args['mac'] = pod.mac
  if (pod.aliases !== undefined) args['aliases'] = pod.aliases
  if (pod.infinibandGuid !== undefined) args['infinibandGUID'] = pod.infinibandGuid
  if (pod.deviceId !== undefined) args['deviceID'] = pod.deviceId
  return args
}

/** CNI_ARGS as pairs: what every Kubernetes runtime passes, then the pod's extra ones. */
export function cniArgsOf(pod: CniPod): [string, string][] {
  const args: [string, string][] = [
    ['IgnoreUnknown', '1'],
    ['K8S_POD_NAMESPACE', pod.namespace],
    ['K8S_POD_NAME', pod.name],
    ['K8S_POD_INFRA_CONTAINER_ID', pod.id],
    ['K8S_POD_UID', pod.uid],
    ...Object.entries(pod.extraArgs ?? {}),
  ]
  for (const [key, value] of args) {
    // A name with ";K8S_POD_NAME=other" in it would pass for another pod.
    if (/[;=]/.test(key) || key === '' || value.includes(';') || value.includes('\0')) {
      throw invalidArgument(`${key} ${JSON.stringify(value)} cannot be passed to CNI plugins: ";" separates CNI_ARGS`)
    }
  }
  return args
}

/** One plugin's input: its own configuration with what the specification has the runtime put in (section 4). */
export function pluginInput(
  plugin: PluginConf,
  network: { readonly name: string; readonly cniVersion: string },
  capabilityArgs: JsonObject,
  prevResult: JsonObject | undefined,
): string {
  const runtimeConfig: Record<string, unknown> = {}
  for (const capability of plugin.capabilities) {
    if (Object.hasOwn(capabilityArgs, capability)) runtimeConfig[capability] = capabilityArgs[capability]
  }
  return JSON.stringify({
    ...plugin.raw,
    name: network.name,
    cniVersion: network.cniVersion,
    ...(Object.keys(runtimeConfig).length === 0 ? {} : { runtimeConfig }),
    ...(prevResult === undefined ? {} : { prevResult }),
  })
}
