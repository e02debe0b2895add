import t from "tap";
import { startRedis } from "./support/redis.ts";
import { startCluster, slotOf } from "./support/redis-cluster.ts";
import { startSentinel } from "./support/redis-sentinel.ts";
import { RedisStore } from "../src/store/redis.ts";
import { probeStore } from "../src/store/probe.ts";
import { storeContract } from "../src/store/contract.ts";
import { setTimeout as delay } from "node:timers/promises";
const ACL = "on >pw resetkeys resetchannels -@all ~coatcheck:* &coatcheck:* &__redis__:invalidate +exists +hget +hmget +hgetall +hkeys +hset +hdel +zadd +zrem +zrange +zremrangebyscore +pexpireat +pexpiretime +unlink +set +scan +eval +evalsha +publish +subscribe +ping +client|id +client|tracking +pttl +zscan +zscore".split(" ");
async function all(url:string){
  let now = Date.now();
  for (const layout of ["blob","fields"] as const) {
    now = Date.now();
    const store = new RedisStore(url,{absoluteTimeoutMs: 12*3600_000, layout, now: () => now});
    await store.firstAnswer();
    const states: string[] = [];
    store.watch({changed(){},ended(){},changedAll(){},feed(s){states.push(s)},delayed(){}});
    await delay(500);
    console.log(states);
    for (const {name, run} of storeContract) await run({store, now:()=>now, advance:(ms:number)=>{now+=ms}}).catch(e=>console.log(name,e.message));
    await store.sweep({fix:true, settleMs:0});
    console.log((await probeStore(store, Date.now)).warnings);
    store.close();
  }
}
async function log(call: (c:string,...a:any[])=>Promise<any>){
  const l = await call("ACL","LOG") as any[][];
  console.log(l.map(e=>{const o:any={}; for(let i=0;i<e.length;i+=2)o[e[i]]=e[i+1]; return `${o.count} ${o.reason} ${o.context} ${o.object} ${o.username}`}));
}
const user = (u:string)=>u.replace("://","://x:pw@");
const one = await startRedis(t);
await one.call("ACL","SETUSER","x",...ACL);
await all(user(one.url));
await log(one.call);
const c = await startCluster(t,{replicas:1});
for (const n of c.nodes) await n.call("ACL","SETUSER","x",...ACL);
await all(user(c.url));
for (const n of c.nodes) await log(n.call);
const s = await startSentinel(t);
for (const n of s.servers) await n.call("ACL","SETUSER","x",...ACL);
await all(user(s.url));
for (const n of s.servers) await log(n.call);
process.exit();
