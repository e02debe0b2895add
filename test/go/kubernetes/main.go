// Builds kustomizations with kustomize itself, and holds what comes of them against Kubernetes' own types and its pod security
// standards. Prints what is wrong; the exit status is 1 if anything is.
//
//	go run -mod=readonly . FOLDER…
package main

import (
	"fmt"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	security "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func main() {
	problems := 0
	report := func(format string, values ...any) {
		problems++
		fmt.Printf(format+"\n", values...)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, monitoring.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	// Strict: a field that the type does not have, or that is there twice, is an error.
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		panic(err)
	}
	restricted := security.LevelVersion{Level: security.LevelRestricted, Version: security.LatestVersion()}

	for _, folder := range os.Args[1:] {
		resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
		if err != nil {
			report("%s: %v", folder, err)
			continue
		}
		for _, resource := range resources.Resources() {
			name := fmt.Sprintf("%s: %s/%s", folder, resource.GetKind(), resource.GetName())
			text, err := resource.AsYAML()
			if err != nil {
				panic(err)
			}
			object, _, err := decoder.Decode(text, nil, nil)
			if err != nil {
				report("%s: %v", name, err)
				continue
			}
			fmt.Println(name)
			deployment, ok := object.(*apps.Deployment)
			if !ok {
				continue
			}
			pod := deployment.Spec.Template
			for _, result := range evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec) {
				if !result.Allowed {
					report("%s: not restricted: %s (%s)", name, result.ForbiddenReason, result.ForbiddenDetail)
				}
			}
		}
	}
	if problems > 0 {
		os.Exit(1)
	}
}
