import { enableCompileCache } from 'node:module'

// Half of the time until the service listens goes into compiling. The cache of an earlier start is used where nobody else can write to
// it: in the directory that systemd keeps for the service (CacheDirectory=), or in NODE_COMPILE_CACHE, which Node heeds by itself.
const cache = process.env['CACHE_DIRECTORY']?.split(':', 1)[0]
if (cache !== undefined && cache !== '' && process.env['NODE_COMPILE_CACHE'] === undefined) enableCompileCache(cache)

// What is imported from here on is cached. The composition root is loaded for `serve` alone: the other commands answer without it.
const { runProcess } = await import('./command-line.ts')
await runProcess(async () => (await import('./compose.ts')).composeService)
