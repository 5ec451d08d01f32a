import manifest from '../../package.json' with { type: 'json' }

/** The versions that belong to a report of a problem. */
export const versions = {
  criShim: manifest.version,
  node: process.versions.node,
  /** The wire contract in api/cri. */
  cri: 'v1 (Kubernetes 0.36)',
} as const
